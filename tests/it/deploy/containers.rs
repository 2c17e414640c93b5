//! The image, the Compose file and the Kubernetes manifests.

use std::process::Command;

use serde_json::Value;
use toml::Table;

use super::{
    KUSTOMIZATIONS, assert_check_passes, manifest_names, operator_manifest_names, parse_seconds,
    program_command, read_text, repository_file, run_ok, shutdown_grace, yaml,
};
use crate::process::{python, run_wecom_proxy};

const COMPOSE: &str = "deploy/compose/compose.yaml";
const COMPOSE_CONFIG: &str = "deploy/compose/config/proxy.toml";

/// The strings of a list.
fn texts(list: &Value) -> Vec<&str> {
    list.as_array().into_iter().flatten().map(|item| item.as_str().expect("a text")).collect()
}

#[tokio::test]
async fn compose_file_is_valid() {
    let mut command = program_command("docker-compose", "--version");
    command.arg("-f").arg(repository_file(COMPOSE)).arg("config");
    run_ok(command).await;
    assert!(read_text("deploy/compose/.env").contains("\nCOMPOSE_PROJECT_NAME=wecom-proxy\n"));
}

#[tokio::test]
async fn compose_file_is_consistent() {
    let compose = &yaml(COMPOSE).await[0];
    let [proxy, valkey, prometheus] =
        ["proxy", "valkey", "prometheus"].map(|name| &compose["services"][name]);
    let config: Table = read_text(COMPOSE_CONFIG).parse().expect("TOML");
    assert!(parse_seconds(proxy["stop_grace_period"].as_str().expect("a time")) > shutdown_grace());
    let mounts = texts(&proxy["volumes"]);
    assert!(mounts.contains(&"./config:/etc/wecom-proxy:ro"), "{mounts:?}");
    assert!(config["server"]["listen"].as_str().is_some_and(|listen| listen.ends_with(":8080")));
    assert_eq!(texts(&proxy["ports"]), ["127.0.0.1:8080:8080"]);
    assert_eq!(config["tokens"]["store"]["redis"].as_str(), Some("redis://valkey:6379/0"));
    for service in [proxy, valkey, prometheus] {
        assert!(texts(&service["networks"]).contains(&"inside"));
        assert_eq!((&service["read_only"], texts(&service["cap_drop"])), (&Value::Bool(true), vec!["ALL"]));
        assert_eq!(texts(&service["security_opt"]), ["no-new-privileges:true"]);
    }
    let scraped = &yaml("deploy/prometheus/prometheus.yml").await[0];
    let scraped = &scraped["scrape_configs"][0];
    assert_eq!(texts(&scraped["static_configs"][0]["targets"]), ["proxy:9090"]);
    assert!(config["admin"]["listen"].as_str().is_some_and(|listen| listen.ends_with(":9090")));
    let key = scraped["authorization"]["credentials_file"].as_str().expect("a path");
    assert_eq!(texts(&prometheus["secrets"]), [key.strip_prefix("/run/secrets/").expect("a secret")]);
    let mounts = texts(&prometheus["volumes"]);
    for name in ["prometheus.yml", "rules.yml"] {
        let mount = format!("../prometheus/{name}:/etc/prometheus/{name}:ro");
        assert!(mounts.contains(&&*mount), "{mount}: {mounts:?}");
    }
}

#[tokio::test]
async fn compose_config_passes_check() {
    let (compose, config) = (&yaml(COMPOSE).await[0], read_text(COMPOSE_CONFIG));
    let names = texts(&compose["services"]["proxy"]["secrets"]);
    assert_check_passes(&config, "/run/secrets", &names).await;
}

async fn manifest(kind: &str) -> &'static Value {
    for name in manifest_names() {
        if let Some(found) = yaml(&name).await.iter().find(|manifest| manifest["kind"] == kind) {
            return found;
        }
    }
    panic!("no {kind}");
}

#[tokio::test]
async fn kubernetes_manifests_are_valid() {
    let mut command = Command::new(python());
    command.args(["-c", "from kubernetes_validate.__main__ import main; main()", "--strict"]);
    let mut names = manifest_names();
    assert_eq!(names.len(), 6, "{names:?}");
    // Of the kinds of the Prometheus Operator, the validator has no schemas.
    names.push(format!("{}/service.yaml", KUSTOMIZATIONS[1]));
    command.args(names.iter().map(|name| repository_file(name)));
    let output = run_ok(command).await;
    let text = output.out + &output.err;
    assert_eq!(text.matches(" passed for resource ").count(), names.len(), "{text}");
    // `kubectl apply -f` with the directory must not replace the secret with the example, so the example is not a .yaml file.
    for name in names {
        for manifest in yaml(&name).await {
            assert_eq!(name.ends_with(".yaml"), manifest["kind"] != "Secret", "{name}");
        }
    }
}

#[tokio::test]
async fn kustomizations_list_every_manifest() {
    for (folder, manifests) in KUSTOMIZATIONS.into_iter().zip([manifest_names(), operator_manifest_names()]) {
        let kustomization = &yaml(&format!("{folder}/kustomization.yaml")).await[0];
        let mut listed: Vec<_> =
            texts(&kustomization["resources"]).into_iter().map(|name| format!("{folder}/{name}")).collect();
        let mut expected: Vec<_> = manifests.into_iter().filter(|name| name.ends_with(".yaml")).collect();
        listed.sort();
        expected.sort();
        assert_eq!(listed, expected);
    }
    // The comment in the first one names the second.
    let text = read_text("deploy/kubernetes/kustomization.yaml");
    assert!(text.contains("\n#components:\n#  - prometheus-operator\n"), "{text}");
    assert_eq!(
        yaml("deploy/kubernetes/prometheus-operator/kustomization.yaml").await[0]["kind"],
        "Component"
    );
}

#[tokio::test]
async fn service_monitor_scrapes_the_admin_port() {
    let folder = KUSTOMIZATIONS[1];
    let monitor = &yaml(&format!("{folder}/servicemonitor.yaml")).await[0];
    let service = &yaml(&format!("{folder}/service.yaml")).await[0];
    let endpoint = &monitor["spec"]["endpoints"][0];
    assert_eq!(monitor["spec"]["selector"]["matchLabels"], service["metadata"]["labels"]);
    assert_ne!(manifest("Service").await["metadata"]["labels"], service["metadata"]["labels"]);
    assert_eq!(endpoint["port"], service["spec"]["ports"][0]["name"]);
    assert_eq!(service["spec"]["ports"][0]["targetPort"], "admin");
    assert_eq!(service["spec"]["selector"], manifest("Service").await["spec"]["selector"]);
    // The rules' job, which the operator takes from this label of the Service.
    let job = monitor["spec"]["jobLabel"].as_str().expect("a label");
    let scraped = &yaml("deploy/prometheus/prometheus.yml").await[0]["scrape_configs"][0];
    assert_eq!(service["metadata"]["labels"][job], scraped["job_name"]);
    assert_eq!(endpoint["authorization"]["credentials"]["name"], "wecom-proxy-admin");
}

#[tokio::test]
async fn prometheus_rule_has_the_rules_of_prometheus() {
    let rule = &yaml("deploy/kubernetes/prometheus-operator/prometheusrule.yaml").await[0];
    let rules = &yaml("deploy/prometheus/rules.yml").await[0];
    // Both are too long to print.
    assert!(rule["spec"]["groups"] == rules["groups"], "run packaging/prometheus-rule");
    assert!(rules["groups"][0]["rules"].as_array().is_some_and(|rules| rules.len() > 5));
}

#[tokio::test]
async fn network_policy_lets_every_kind_of_dns_pass() {
    let policy = manifest("NetworkPolicy").await;
    let egress = policy["spec"]["egress"].as_array().expect("rules");
    let dns = egress.iter().find(|rule| rule["ports"][0]["port"] == 53).expect("a rule");
    // A rule with `to` would have to list addresses that differ from cluster to cluster.
    assert_eq!((dns.get("to"), dns["ports"].as_array().map(Vec::len)), (None, Some(2)));
    assert!(egress.iter().filter(|rule| *rule != dns).all(|rule| rule["to"].is_array()), "{egress:?}");
    let options = &manifest("Deployment").await["spec"]["template"]["spec"]["dnsConfig"]["options"];
    assert_eq!((&options[0]["name"], &options[0]["value"]), (&Value::from("ndots"), &Value::from("1")));
}

#[tokio::test]
async fn kubernetes_pod_drains_and_has_no_privileges() {
    let deployment = manifest("Deployment").await;
    let (labels, pod) =
        (&deployment["spec"]["template"]["metadata"]["labels"], &deployment["spec"]["template"]["spec"]);
    let container = &pod["containers"][0];
    let before = container["lifecycle"]["preStop"]["sleep"]["seconds"].as_u64().expect("seconds");
    let grace = pod["terminationGracePeriodSeconds"].as_u64().expect("seconds");
    assert!(before > 0 && grace > before + shutdown_grace().as_secs());
    // /healthz fails during the drain; the liveness probe must not kill the pod for that.
    let probe = |name: &str, key: &str| container[name][key].as_u64().expect("a number");
    let liveness_timeout =
        probe("livenessProbe", "periodSeconds") * probe("livenessProbe", "failureThreshold");
    assert!(liveness_timeout > grace, "{liveness_timeout}");
    assert_eq!(deployment["spec"]["strategy"]["rollingUpdate"]["maxUnavailable"], 0);
    let selectors = [
        &deployment["spec"]["selector"]["matchLabels"],
        &manifest("PodDisruptionBudget").await["spec"]["selector"]["matchLabels"],
        &manifest("NetworkPolicy").await["spec"]["podSelector"]["matchLabels"],
        &manifest("Service").await["spec"]["selector"],
    ];
    assert!(selectors.iter().all(|selector| *selector == labels), "{selectors:?}");
    let (of_pod, of_container) = (&pod["securityContext"], &container["securityContext"]);
    assert_eq!((&of_pod["runAsNonRoot"], &of_pod["runAsUser"]), (&Value::Bool(true), &Value::from(65532)));
    assert_eq!(of_pod["seccompProfile"]["type"], "RuntimeDefault");
    assert_eq!(of_container["readOnlyRootFilesystem"], true);
    assert_eq!(of_container["allowPrivilegeEscalation"], false);
    assert_eq!(texts(&of_container["capabilities"]["drop"]), ["ALL"]);
}

#[tokio::test]
async fn kubernetes_manifests_match_the_configuration() {
    let (config, deployment) = (manifest("ConfigMap").await, manifest("Deployment").await);
    let config = config["data"]["proxy.toml"].as_str().expect("a text");
    let pod = &deployment["spec"]["template"]["spec"];
    let container = &pod["containers"][0];
    let mount = |name: &str| {
        let mounts = container["volumeMounts"].as_array().expect("mounts");
        let found = mounts.iter().find(|mount| mount["name"] == name);
        found
            .and_then(|mount| mount["mountPath"].as_str())
            .unwrap_or_else(|| panic!("no mount {name}"))
            .to_owned()
    };
    assert_eq!((mount("config").as_str(), mount("spool").as_str()), ("/etc/wecom-proxy", "/tmp"));
    let secret = manifest("Secret").await;
    let names: Vec<_> =
        secret["stringData"].as_object().expect("secrets").keys().map(String::as_str).collect();
    assert_check_passes(config, &mount("secrets"), &names).await;
    let table: Table = config.parse().expect("TOML");
    for port in container["ports"].as_array().expect("ports") {
        let section = if port["name"] == "admin" { "admin" } else { "server" };
        let listen = table[section]["listen"].as_str().expect("an address");
        assert_eq!(listen, format!("0.0.0.0:{}", port["containerPort"]));
    }
    for probe in ["startupProbe", "readinessProbe", "livenessProbe"] {
        assert_eq!(container[probe]["httpGet"]["port"], "admin");
    }
    assert_eq!(manifest("Service").await["spec"]["ports"][0]["targetPort"], "http");
}

/// The instructions of the Dockerfile, as (name, arguments).
fn dockerfile() -> Vec<(String, String)> {
    let text = read_text("Dockerfile").replace("\\\n", " ");
    let lines = text.lines().filter(|line| !line.is_empty() && !line.starts_with('#'));
    lines
        .map(|line| line.split_once(' ').expect("an instruction"))
        .map(|(a, b)| (a.to_owned(), b.to_owned()))
        .collect()
}

#[tokio::test]
async fn image_copies_and_starts_what_exists() {
    let (lines, ignored) = (dockerfile(), read_text(".dockerignore"));
    for (name, rest) in lines.iter().filter(|(name, rest)| name == "COPY" && !rest.starts_with("--from")) {
        for source in rest.split_whitespace().rev().skip(1) {
            assert!(
                repository_file(source).exists() && ignored.contains(&format!("!{source}\n")),
                "{name} {source}"
            );
        }
    }
    let last = |name: &str| {
        let found = lines.iter().rev().find(|line| line.0 == name);
        found.unwrap_or_else(|| panic!("no {name}")).1.as_str()
    };
    assert_eq!((last("FROM"), last("USER")), ("scratch", "65532:65532"));
    // A scratch image has no shell, so only the exec form (a JSON list) works.
    let exec_form = |text: &str| -> Vec<String> { serde_json::from_str(text).expect("a JSON list") };
    let program = exec_form(last("ENTRYPOINT"));
    let health = exec_form(last("HEALTHCHECK").split_once("CMD ").expect("a command").1);
    assert_eq!(program, ["/wecom-proxy"]);
    assert_eq!(program[..], health[..1]);
    for command in [exec_form(last("CMD")), health[1..].to_vec()] {
        let output = run_wecom_proxy(&[&command[0], "--help"]).await;
        assert_eq!((output.status, command.len()), (0, 1), "{command:?}");
    }
}
