//! `[providers.*]`, `[suites.*]`, and the `[agents.*]` with a suite.

use super::load_text;
use crate::config::AgentSet;

const STATE: &str = "[state]\npath = \"s.db\"\nkey = { env = \"LONG\" }\n";
const SUITE: &str = "[suites.crm]\nsuite_id = \"ww5\"\nsecret = { env = \"SUITE_SECRET\" }\n\
    token = { env = \"SUITE_TOKEN\" }\naes_key = { env = \"SUITE_AES_KEY\" }\n";
const PROVIDER: &str = "[providers.acme]\ncorpid = \"ww9\"\nsecret = { env = \"PROVIDER_SECRET\" }\n";
const CORP: &str =
    "[agents.one]\nsuite = \"crm\"\ncorpid = \"wp1\"\npermanent_code = { env = \"PERMANENT_CODE\" }\n";

fn client(agents: &str) -> String {
    format!("{STATE}{SUITE}{PROVIDER}{CORP}[clients.a]\nkey = {{ env = \"KEY\" }}\nagents = {agents}\n")
}

#[test]
fn suite_with_provider_and_corp_is_accepted_without_other_agents() {
    let config = load_text(&format!("{STATE}{SUITE}provider = \"acme\"\n{PROVIDER}{CORP}")).unwrap();
    let suites = &config.suites;
    assert_eq!((suites.providers.len(), suites.suites.len(), suites.corps.len()), (1, 1, 1));
    assert_eq!(suites.suites["crm"].provider.as_deref(), Some("acme"));
    assert_eq!(suites.corps["one"].corpid, "wp1");
    assert!(config.agents.is_empty());
    assert!(load_text(PROVIDER).is_ok(), "a provider needs no state");
}

#[test]
fn clients_may_list_suites_providers_and_corps() {
    for agents in
        [r#"["crm"]"#, r#"["acme"]"#, r#"["one"]"#, r#"["crm:*"]"#, r#"["crm:wpX_1-a"]"#, r#"["*", "crm"]"#]
    {
        assert!(load_text(&client(agents)).is_ok(), "{agents}");
    }
    let config = load_text(&client(r#"["crm", "*"]"#)).unwrap();
    let set = &config.clients["a"].agents;
    assert!(matches!(set, AgentSet::AllWith(_)) && set.names("crm") && !set.names("acme"));
    assert!(set.contains("one") && set.contains_corp("crm", "wp1"));
    let one = load_text(&client(r#"["crm:wp1"]"#)).unwrap();
    let set = &one.clients["a"].agents;
    assert!(set.contains_corp("crm", "wp1") && !set.contains_corp("crm", "wP1") && !set.names("crm"));
}

#[test]
fn mistakes_are_named() {
    for (text, error) in [
        (SUITE.to_owned(), ":1: suites: needs [state]"),
        (
            format!("{STATE}{}", SUITE.replace("aes_key = { env = \"SUITE_AES_KEY\" }\n", "")),
            "aes_key: is missing",
        ),
        (format!("{STATE}{}", SUITE.replace("SUITE_AES_KEY", "LONG")), "an EncodingAESKey has 43"),
        (format!("{STATE}{SUITE}provider = \"acme\"\n"), "there is no provider \"acme\""),
        (format!("{STATE}{SUITE}after_install = \"crm\"\n"), "is no URL"),
        (format!("{STATE}{}", SUITE.replace("crm", "cgi-bin")), "cannot be an agent's name"),
        (format!("{STATE}{SUITE}{}", PROVIDER.replace("acme", "crm")), "share one set of names"),
        (format!("{STATE}{SUITE}{}", SUITE.replace("crm", "other")), "has the suite_id of suites.crm"),
        (format!("{STATE}{SUITE}{CORP}secret = {{ env = \"HR\" }}\n"), "permanent_code in place of secret"),
        (format!("{STATE}{SUITE}{}", CORP.replace("\"crm\"", "\"crn\"")), "did you mean \"crm\"?"),
        (format!("{STATE}{SUITE}{}", CORP.replace("wp1", "wp:1")), "is no corpid of an authorised corp"),
        (
            format!("{STATE}{SUITE}{CORP}{}", CORP.replace("one", "two")),
            "is the suite and corpid of agents.one",
        ),
        (format!("{STATE}{SUITE}{CORP}accept_secret = true\n"), "unknown key \"accept_secret\""),
        (client(r#"["*", "one"]"#), "means all agents, so it must be the only entry"),
    ] {
        let message = load_text(&text).unwrap_err().to_string();
        assert!(message.contains(error), "{message}\n{text}");
    }
}

#[test]
fn corps_of_no_suite_are_warned_of() {
    for agents in [r#"["crm:"]"#, r#"["crn:*"]"#, r#"["crm:a:b"]"#] {
        let config = load_text(&client(agents)).expect("it may stand in the state");
        assert_eq!(config.warnings.len(), 1, "{agents}: {:?}", config.warnings);
    }
    assert_eq!(load_text(&client(r#"["crm:*", "acme", "one"]"#)).expect("a configuration").warnings, []);
}
