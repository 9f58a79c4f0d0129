//! Reads and writes the files of a volume, inside a short-lived pod
