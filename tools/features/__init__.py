"""Makes feature files: of the videos of a data set, or of the features that other projects made."""
