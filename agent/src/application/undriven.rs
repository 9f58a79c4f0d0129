//! Servers that keep data and that no driver knows. Their volumes are copied as files; without one, nothing of them is.
//!
//! To add one: a line in [`IMAGES`]. Once it has a driver, take the line out.

use crate::data::ContainerView;

/// The last part of their images' names, and what they are. Caches that forget by intent are not here.
const IMAGES: &[(&str, &str)] = &[
    ("mysql", "MySQL"),
    ("mysql-server", "MySQL"),
    ("percona", "MySQL"),
    ("percona-server", "MySQL"),
    ("percona-xtradb-cluster", "MySQL"),
    ("mariadb", "MariaDB"),
    ("mariadb-galera", "MariaDB"),
    ("redis", "Redis"),
    ("redis-stack", "Redis"),
    ("redis-stack-server", "Redis"),
    ("redis-cluster", "Redis"),
    ("valkey", "Valkey"),
    ("keydb", "KeyDB"),
    ("dragonfly", "Dragonfly"),
    ("minio", "MinIO"),
    ("seaweedfs", "SeaweedFS"),
    ("garage", "Garage"),
    ("elasticsearch", "Elasticsearch"),
    ("opensearch", "OpenSearch"),
    ("solr", "Solr"),
    ("meilisearch", "Meilisearch"),
    ("typesense", "Typesense"),
    ("cassandra", "Cassandra"),
    ("scylla", "ScyllaDB"),
    ("couchdb", "CouchDB"),
    ("couchbase", "Couchbase"),
    ("arangodb", "ArangoDB"),
    ("rethinkdb", "RethinkDB"),
    ("neo4j", "Neo4j"),
    ("influxdb", "InfluxDB"),
    ("clickhouse", "ClickHouse"),
    ("clickhouse-server", "ClickHouse"),
    ("cockroach", "CockroachDB"),
    ("mssql-server", "SQL Server"),
    ("qdrant", "Qdrant"),
    ("weaviate", "Weaviate"),
    ("etcd", "etcd"),
    ("zookeeper", "ZooKeeper"),
    ("kafka", "Kafka"),
    ("cp-kafka", "Kafka"),
    ("redpanda", "Redpanda"),
    ("rabbitmq", "RabbitMQ"),
    ("openldap", "OpenLDAP"),
];
/// Programs that are told by their name, wherever they come from.
const PROGRAMS: &[(&str, &str)] = &[
    ("mysqld", "MySQL"),
    ("mariadbd", "MariaDB"),
    ("redis-server", "Redis"),
    ("valkey-server", "Valkey"),
    ("minio", "MinIO"),
    ("etcd", "etcd"),
    ("rabbitmq-server", "RabbitMQ"),
];
/// Ports that nothing else listens on by custom.
const PORTS: &[(u16, &str)] = &[(3306, "MySQL"), (6379, "Redis")];

/// What a container serves, if it is one of these.
pub(super) fn kind(container: &ContainerView) -> Option<&'static str> {
    let path = container.image.split('@').next().unwrap_or_default();
    let name = path.rsplit('/').next().unwrap_or_default().split(':').next().unwrap_or_default().to_ascii_lowercase();
    if path.contains("mssql/server") {
        return Some("SQL Server");
    }
    let words = container.command.iter().flat_map(|word| word.split_whitespace());
    let programs: Vec<&str> = words.take(4).map(|word| word.rsplit('/').next().unwrap_or_default()).collect();
    let by_image = IMAGES.iter().find(|(known, _)| *known == name).map(|(_, kind)| *kind);
    let by_program = || PROGRAMS.iter().find(|(known, _)| programs.contains(known)).map(|(_, kind)| *kind);
    let by_port = || PORTS.iter().find(|(port, _)| container.ports.contains(port)).map(|(_, kind)| *kind);
    // What waits for others to use its client programs serves nothing.
    if by_image.is_some() && matches!(programs.first(), Some(&("sleep" | "tail" | "redis-cli" | "mysql" | "mc"))) {
        return None;
    }
    by_image.or_else(by_program).or_else(by_port)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn servers_are_told_from_their_exporters_and_clients() {
        let view = |image: &str, command: &[&str], ports: &[u16]| ContainerView {
            image: image.to_owned(),
            command: command.iter().map(|word| (*word).to_owned()).collect(),
            ports: ports.to_vec(),
            ..ContainerView::default()
        };
        assert_eq!(kind(&view("redis:7-alpine", &[], &[])), Some("Redis"));
        assert_eq!(kind(&view("h:5000/bitnami/mariadb@sha256:0", &[], &[])), Some("MariaDB"));
        assert_eq!(kind(&view("mcr.microsoft.com/mssql/server:2022", &[], &[])), Some("SQL Server"));
        assert_eq!(kind(&view("own/thing", &["/usr/sbin/mysqld"], &[])), Some("MySQL"));
        assert_eq!(kind(&view("own/thing", &["sh", "-c", "exec redis-server --save ''"], &[])), Some("Redis"));
        assert_eq!(kind(&view("own/thing", &[], &[6379])), Some("Redis"));
        for image in ["oliver006/redis_exporter", "own/web", "memcached", "mysqlclient"] {
            assert_eq!(kind(&view(image, &[], &[80])), None, "{image}");
        }
        assert_eq!(kind(&view("redis:7", &["sleep", "1d"], &[])), None);
    }
}
