"""The files of the tools people label with: one file per format, read into and written from LabelledVideo."""
