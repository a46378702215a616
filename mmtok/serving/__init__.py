"""From folders of media to pruned features that servers take."""
