"""For pyright only: rules/ under its installed name (an editable install is invisible to it)."""
