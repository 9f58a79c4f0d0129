//! The platform against a real cluster: the testbed's (`make testbed`), or the one that OCOPEA_TEST_KUBECONFIG and
//! OCOPEA_TEST_CONTEXT name. Everything happens in namespaces of its own, which are removed in the end.

use std::{panic::AssertUnwindSafe, path::PathBuf, sync::Arc, time::Duration};

use futures::FutureExt;
use ocopea_agent::{
    application::Application,
    configs::{object_ref, to_files},
    data::Tools,
    platform::{Platform, apply::resource_of, exec::PodTools, logs::LogWish},
};
use ocopea_protocol::{
    failure::{FailureClass, TaskFailure},
    ids::{EnvironmentId, OperationId},
    names::Digest,
    seams::Seams,
    secret::Secret,
    task::{EnvironmentMark, Source},
};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

const IMAGE: &str = "172.31.0.254:5000/testbed/busybox:1";

fn kubeconfig() -> PathBuf {
    std::env::var_os("OCOPEA_TEST_KUBECONFIG")
        .map_or_else(|| PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../.testbed/kubeconfig")), PathBuf::from)
}

async fn platform() -> Platform {
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let context = std::env::var("OCOPEA_TEST_CONTEXT").unwrap_or_else(|_| "b".to_owned());
    let path = kubeconfig();
    assert!(path.exists(), "no cluster to test with at {}: bring it up with `make testbed`", path.display());
    Platform::open(Some(&path), &context, Seams::real(TaskTracker::new())).await.unwrap()
}

fn mark(platform: &Platform, name: &str) -> EnvironmentMark {
    let environment = EnvironmentId::generate(&platform.seams);
    let id = environment.to_string();
    let record: Digest = format!("sha256:{}", "ab".repeat(32)).parse().unwrap();
    let name = format!("test-{name}-{}", &id[id.len() - 6..]).parse().unwrap();
    EnvironmentMark { environment, name, operation: OperationId::generate(&platform.seams), record }
}

/// Runs `test` in a namespace of its own, removed whatever happens.
async fn in_namespace<F: Future<Output = ()>>(name: &str, test: impl FnOnce(Platform, EnvironmentMark) -> F) {
    let platform = platform().await;
    let mark = mark(&platform, name);
    platform.create_namespace(&mark).await.unwrap();
    let outcome = AssertUnwindSafe(test(platform.clone(), mark.clone())).catch_unwind().await;
    platform.remove_namespace(&mark, &CancellationToken::new()).await.unwrap();
    assert!(!platform.namespace_exists(mark.name.as_str()).await.unwrap());
    if let Err(panic) = outcome {
        std::panic::resume_unwind(panic);
    }
}

async fn apply(platform: &Platform, namespace: &str, object: &Value, dry_run: bool) -> Result<Value, TaskFailure> {
    let resources = platform.namespaced_resources().await?;
    let resource = resource_of(&resources, object).unwrap();
    platform.apply(resource, namespace, object, dry_run).await
}

fn source(mark: &EnvironmentMark) -> Source {
    Source { namespace: mark.name.clone().into(), selector: None, without: vec![], credentials: vec![], freeze: false }
}

fn web(name: &str, image: &str) -> Value {
    let script =
        "mkdir -p /tmp/www; echo it-is-me > /tmp/www/index.html; echo started; exec httpd -f -p 8080 -h /tmp/www";
    json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": name, "labels": {"app": name}}, "spec": {
        "selector": {"matchLabels": {"app": name}}, "template": {"metadata": {"labels": {"app": name}}, "spec": {
            "terminationGracePeriodSeconds": 0,
            "containers": [{"name": "main", "image": image, "command": ["sh", "-c", script], "ports": [{"containerPort": 8080}],
                "readinessProbe": {"tcpSocket": {"port": 8080}, "periodSeconds": 1},
                "env": [{"name": "GREETING", "valueFrom": {"configMapKeyRef": {"name": "settings", "key": "greeting"}}}],
                "volumeMounts": [{"name": "files", "mountPath": "/files"}]}],
            "volumes": [{"name": "files", "persistentVolumeClaim": {"claimName": "files"}}]}}}})
}

fn shop() -> Vec<Value> {
    vec![
        json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "settings"}, "data": {"greeting": "hello"}}),
        json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "login"}, "stringData": {"password": "canary-7"}}),
        json!({"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": "files"},
            "spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "16Mi"}}}}),
        json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "web"}, "spec": {"selector": {"app": "web"}, "ports": [{"port": 80, "targetPort": 8080}]}}),
        json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "outside"}, "spec": {"ports": [{"port": 80}]}}),
        json!({"apiVersion": "v1", "kind": "Endpoints", "metadata": {"name": "outside"}, "subsets": [{"addresses": [{"ip": "192.0.2.1"}], "ports": [{"port": 80}]}]}),
        json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "worker"}}),
        json!({"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "migrate"}, "spec": {"template": {"spec": {"restartPolicy": "Never",
            "containers": [{"name": "m", "image": IMAGE, "command": ["true"]}]}}}}),
        json!({"apiVersion": "batch/v1", "kind": "CronJob", "metadata": {"name": "nightly"}, "spec": {"schedule": "0 3 * * *", "suspend": true,
            "jobTemplate": {"spec": {"template": {"spec": {"restartPolicy": "Never", "containers": [{"name": "n", "image": IMAGE, "command": ["true"]}]}}}}}}),
        json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "bare"}, "spec": {"terminationGracePeriodSeconds": 0,
            "containers": [{"name": "b", "image": IMAGE, "command": ["sleep", "3600"]}]}}),
        web("web", IMAGE),
    ]
}

#[tokio::test(flavor = "multi_thread")]
async fn an_application_is_found_whole_and_without_what_the_cluster_made() {
    in_namespace("found", |platform, mark| async move {
        let namespace = mark.name.as_str();
        for object in shop() {
            apply(&platform, namespace, &object, false).await.unwrap();
        }
        let resources = platform.namespaced_resources().await.unwrap();
        let deployment = resource_of(&resources, &web("web", IMAGE)).unwrap().clone();
        let bare = resource_of(&resources, &json!({"apiVersion": "v1", "kind": "Pod"})).unwrap().clone();
        let workloads = [(deployment, "web".to_owned()), (bare, "bare".to_owned())];
        platform.await_ready(namespace, &workloads, Duration::from_secs(90), &CancellationToken::new()).await.unwrap();
        let source = source(&mark);
        let mut application = Application::gather(&platform, &source).await.unwrap();
        for _ in 0..100 {
            if application.objects.iter().any(|o| o["metadata"]["annotations"]["ocopea.dev/finished"] == "true") {
                break;
            }
            platform.seams.clock.sleep(Duration::from_millis(300)).await;
            application = Application::gather(&platform, &source).await.unwrap();
        }
        let mut names: Vec<String> = application.objects.iter().map(|o| object_ref(o).to_string()).collect();
        names.sort();
        let expected = [
            "configmap/settings",
            "cronjob/nightly",
            "deployment/web",
            "endpoints/outside",
            "job/migrate",
            "persistentvolumeclaim/files",
            "pod/bare",
            "secret/login",
            "service/outside",
            "service/web",
            "serviceaccount/worker",
        ];
        assert_eq!(names, expected);
        assert_eq!(application.gaps, vec![], "nothing is missing");
        let containers: Vec<(String, usize)> =
            application.containers.iter().map(|c| (c.name.to_string(), c.used_by.len())).collect();
        assert_eq!(containers, [("busybox".to_owned(), 4)], "one image, by the digest that runs, for all of its users");
        assert_eq!(application.data.len(), 1);
        assert_eq!(application.data[0].found.claims, ["files"]);
        let job = application.objects.iter().find(|o| o["kind"] == "Job").unwrap();
        assert_eq!(job["metadata"]["annotations"]["ocopea.dev/finished"], "true");
        assert!(application.objects.iter().all(|o| o["metadata"].get("uid").is_none() && o.get("status").is_none()));

        // Unchanged applications have equal bytes, whatever the cluster does meanwhile.
        let first = to_files(&application.objects).unwrap();
        let begun = platform.seams.clock.monotonic();
        let again = Application::gather(&platform, &source).await.unwrap();
        println!("gathered in {:?}", platform.seams.clock.monotonic() - begun);
        assert_eq!(to_files(&again.objects).unwrap(), first);
        assert_eq!(again.fingerprint(), application.fingerprint());

        // What was saved can be applied as it is, and comes out the same once more.
        let copy = self::mark(&platform, "copy");
        platform.create_namespace(&copy).await.unwrap();
        for object in application.objects.iter().filter(|o| o["kind"] != "Job") {
            apply(&platform, copy.name.as_str(), object, false).await.unwrap();
        }
        let copied = Application::gather(&platform, &self::source(&copy)).await.unwrap();
        platform.remove_namespace(&copy, &CancellationToken::new()).await.unwrap();
        let mut wanted = first.clone();
        wanted.remove("batch_v1_Job/migrate.json");
        let copied = to_files(&copied.objects).unwrap();
        assert_eq!(copied.keys().collect::<Vec<_>>(), wanted.keys().collect::<Vec<_>>());
        for (path, bytes) in &wanted {
            assert_eq!(String::from_utf8_lossy(&copied[path]), String::from_utf8_lossy(bytes), "{path}");
        }

        // A selector takes what carries the label, what that can't run without, and nothing else.
        let selected = Source { selector: Some("app=web".to_owned()), ..source };
        let part = Application::gather(&platform, &selected).await.unwrap();
        let names: Vec<String> = part.objects.iter().map(|o| object_ref(o).to_string()).collect();
        assert_eq!(names, ["configmap/settings", "persistentvolumeclaim/files", "service/web", "deployment/web"]);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_is_reached_by_exec_port_and_logs() {
    in_namespace("reach", |platform, mark| async move {
        let namespace = mark.name.as_str();
        for object in shop().iter().filter(|o| o["kind"] != "Job" && o["kind"] != "CronJob" && o["kind"] != "Pod") {
            apply(&platform, namespace, object, false).await.unwrap();
        }
        let resources = platform.namespaced_resources().await.unwrap();
        let deployment = resource_of(&resources, &web("web", IMAGE)).unwrap().clone();
        let stop = CancellationToken::new();
        platform
            .await_ready(namespace, &[(deployment, "web".to_owned())], Duration::from_secs(90), &stop)
            .await
            .unwrap();
        let pod = platform.ready_pod(namespace, "app=web").await.unwrap().unwrap();

        let tools = PodTools {
            platform: platform.clone(),
            namespace: namespace.to_owned(),
            pod: pod.clone(),
            container: Some("main".to_owned()),
            port: 8080,
        };
        let text = |s: &str| s.to_owned();
        let environment = [(text("PASSWORD"), Secret::new("p ä'\"$x"))];
        let arguments = [text("-c"), text("echo \"$PASSWORD $GREETING\"; cat; echo trouble >&2; exit 7")];
        let input: Vec<u8> = (0..3_000_000u32).flat_map(u32::to_le_bytes).collect();
        let expected = input.clone();
        let mut tool =
            tools.start("sh", &arguments, &environment, Some(Box::new(std::io::Cursor::new(input)))).await.unwrap();
        let mut output = Vec::new();
        tool.output.read_to_end(&mut output).await.unwrap();
        let head = "p ä'\"$x hello\n".len();
        assert_eq!(String::from_utf8_lossy(&output[..head]), "p ä'\"$x hello\n");
        assert!(output[head..] == expected[..], "12 MB went through unchanged, not {} bytes", output.len());
        assert_eq!(tool.ended.await.unwrap(), (7, text("trouble")));
        let missing = tools.start("no-such-program", &[], &[], None).await.unwrap();
        assert_eq!(missing.ended.await.unwrap().0, 127);

        let forward = platform.forward(namespace, &pod, 8080, 0).await.unwrap();
        for _ in 0..3 {
            let mut connection = tokio::net::TcpStream::connect(forward.address).await.unwrap();
            connection.write_all(b"GET / HTTP/1.0\r\n\r\n").await.unwrap();
            let mut answer = String::new();
            connection.read_to_string(&mut answer).await.unwrap();
            assert!(answer.contains("it-is-me"), "{answer}");
        }
        let address = forward.address;
        drop(forward);
        platform.seams.clock.sleep(Duration::from_millis(100)).await;
        assert!(tokio::net::TcpStream::connect(address).await.is_err(), "a dropped forward listens no more");

        let wish = LogWish { component: Some(text("deployment/web")), follow: true, tail: None };
        let mut lines = platform.logs(namespace, &wish).await.unwrap();
        let line = platform.seams.timeout(Duration::from_secs(10), lines.recv()).await.unwrap().unwrap();
        assert_eq!((line.container.as_str(), line.text.as_str()), ("main", "started"));
        let none = platform.logs(namespace, &LogWish { component: Some(text("nobody")), ..wish }).await;
        assert!(none.is_err_and(|failure| failure.code == "environment.no-component"));
    })
    .await;
}

/// The platform by way of a proxy that breaks all of its connections when the token is cancelled.
async fn breakable(cut: CancellationToken) -> Platform {
    let mut config = kube::config::Kubeconfig::read_from(kubeconfig()).unwrap();
    let context = std::env::var("OCOPEA_TEST_CONTEXT").unwrap_or_else(|_| "b".to_owned());
    let of = config.contexts.iter().find(|c| c.name == context).unwrap().context.clone().unwrap().cluster;
    let cluster = config.clusters.iter_mut().find(|c| c.name == of).unwrap().cluster.as_mut().unwrap();
    let server = cluster.server.clone().unwrap();
    let target = server.trim_start_matches("https://").trim_end_matches('/').to_owned();
    let target = if target.contains(':') { target } else { format!("{target}:443") };
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    cluster.server = Some(format!("https://{}", listener.local_addr().unwrap()));
    cluster.tls_server_name.get_or_insert(target.rsplit_once(':').unwrap().0.to_owned());
    let seams = Seams::real(TaskTracker::new());
    let spawner = seams.spawner.clone();
    seams.spawner.spawn(
        "test.proxy",
        Box::pin(async move {
            while let Ok((mut here, _)) = listener.accept().await {
                let (cut, target) = (cut.clone(), target.clone());
                let carry = async move {
                    let mut there = tokio::net::TcpStream::connect(target).await.unwrap();
                    tokio::select! {
                        () = cut.cancelled() => {}
                        _ = tokio::io::copy_bidirectional(&mut here, &mut there) => {}
                    }
                };
                spawner.spawn("test.connection", Box::pin(carry));
            }
        }),
    );
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), serde_json::to_string(&config).unwrap()).unwrap();
    Platform::open(Some(file.path()), &context, seams).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_program_whose_connection_breaks_is_lost_at_once_and_not_waited_for() {
    in_namespace("cut", |platform, mark| async move {
        let namespace = mark.name.as_str();
        for object in shop().iter().filter(|o| o["metadata"]["name"] == "bare") {
            apply(&platform, namespace, object, false).await.unwrap();
        }
        let resources = platform.namespaced_resources().await.unwrap();
        let bare = resource_of(&resources, &json!({"apiVersion": "v1", "kind": "Pod"})).unwrap().clone();
        let stop = CancellationToken::new();
        platform.await_ready(namespace, &[(bare, "bare".to_owned())], Duration::from_secs(90), &stop).await.unwrap();

        let cut = CancellationToken::new();
        let other = breakable(cut.clone()).await;
        let command = ["sh", "-c", "echo begun; exec sleep 1000"].map(str::to_owned);
        // An input that never ends, and is never read.
        let input = tokio::io::repeat(7);
        let mut tool = other.exec(namespace, "bare", None, &command, Some(Box::new(input))).await.unwrap();
        let mut begun = [0; 6];
        tool.output.read_exact(&mut begun).await.unwrap();
        assert_eq!(&begun, b"begun\n");
        cut.cancel();
        let rest = platform.seams.timeout(Duration::from_secs(10), tool.output.read(&mut begun)).await;
        assert!(rest.expect("the loss is noticed").is_err());
        let ended = platform.seams.timeout(Duration::from_secs(10), tool.ended).await;
        assert_eq!(ended.expect("the end is told").unwrap().0, -1);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_namespace_is_made_once_and_removed_by_its_own_mark_only() {
    in_namespace("mark", |platform, mark| async move {
        let stop = CancellationToken::new();
        platform.create_namespace(&mark).await.unwrap();
        let other = EnvironmentMark { environment: EnvironmentId::generate(&platform.seams), ..mark.clone() };
        let refused = platform.create_namespace(&other).await.unwrap_err();
        assert_eq!((refused.class, refused.code.as_str()), (FailureClass::Conflict, "environment.exists"));
        platform.remove_namespace(&other, &stop).await.unwrap();
        assert!(platform.namespace_exists(mark.name.as_str()).await.unwrap(), "another's mark removes nothing");
        let found = platform.namespace_marks(mark.name.as_str()).await.unwrap();
        assert_eq!(found, Some((mark.environment.to_string(), mark.record.to_string())));

        let object =
            json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "trial"}, "data": {"a": "b"}});
        apply(&platform, mark.name.as_str(), &object, true).await.unwrap();
        let contents = platform.contents(mark.name.as_str(), None).await.unwrap();
        assert!(contents.configuration.is_empty(), "a dry run makes nothing");
        let broken =
            json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "trial"}, "data": {"a": {"b": 1}}});
        let refused = apply(&platform, mark.name.as_str(), &broken, true).await.unwrap_err();
        assert!(refused.what.contains("configmap/trial") && !refused.is_retryable(), "{refused:?}");
        platform.remove_namespace(&mark, &stop).await.unwrap();
        platform.remove_namespace(&mark, &stop).await.unwrap();
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_keeps_a_workload_from_running_is_named() {
    in_namespace("trouble", |platform, mark| async move {
        let namespace = mark.name.as_str();
        for object in
            shop().iter().filter(|o| matches!(o["kind"].as_str(), Some("ConfigMap" | "PersistentVolumeClaim")))
        {
            apply(&platform, namespace, object, false).await.unwrap();
        }
        let object = web("web", "172.31.0.254:5000/testbed/no-such-image:1");
        apply(&platform, namespace, &object, false).await.unwrap();
        let resources = platform.namespaced_resources().await.unwrap();
        let workloads = [(resource_of(&resources, &object).unwrap().clone(), "web".to_owned())];
        let stop = CancellationToken::new();
        let failure = platform.await_ready(namespace, &workloads, Duration::from_secs(80), &stop).await.unwrap_err();
        assert!(failure.cause.contains("deployment/web") && failure.cause.contains("no-such-image"), "{failure:?}");
    })
    .await;
}

#[tokio::test]
async fn a_cluster_that_is_down_and_a_context_that_is_not_there_are_said_so() {
    let seams = Seams::real(TaskTracker::new());
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let file = tempfile::NamedTempFile::new().unwrap();
    let config = json!({"apiVersion": "v1", "kind": "Config", "clusters": [{"name": "down", "cluster": {"server": "https://127.0.0.1:1"}}],
        "users": [{"name": "u", "user": {"token": "t"}}], "contexts": [{"name": "down", "context": {"cluster": "down", "user": "u"}}]});
    std::fs::write(file.path(), config.to_string()).unwrap();
    let absent = Platform::open(Some(file.path()), "up", seams.clone()).await.err().unwrap();
    assert!(absent.what.contains("\"up\""), "{absent:?}");
    let down = Platform::open(Some(file.path()), "down", seams.clone()).await.unwrap();
    let site = Arc::new(ocopea_agent::execute::Site {
        name: "down".to_owned(),
        platform: down,
        restoring: None,
        registry: None,
        mover_image: None,
        credentials: ocopea_agent::containers::Credentials::default(),
        stores: Default::default(),
        limits: Default::default(),
        seams: seams.clone(),
    });
    let report = site.report(ocopea_protocol::ids::InstanceId::generate(&seams)).await;
    let ocopea_protocol::message::SiteState::Unreachable(why) = report.state else { panic!("{report:?}") };
    assert!(why.contains("refused"), "{why}");
}
