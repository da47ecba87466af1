"""Images that users bring or name: folders, tables, known sets, targets, shifted test sets."""
