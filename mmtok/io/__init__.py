"""Media in and pictures out: image and video files, pictures of the tokens that were kept."""
