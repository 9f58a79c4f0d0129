//! The ocopea command
