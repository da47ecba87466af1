"""What everything stands on: whole files, streams of random draws, intervals."""
