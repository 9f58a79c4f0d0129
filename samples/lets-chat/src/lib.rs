//! Lets-chat: a small chat service to try Ocopea on
