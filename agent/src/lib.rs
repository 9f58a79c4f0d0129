//! The agent beside a cluster: containers, configuration and data services
