//! Errors in `[agents.*]` and `[clients.*]`, each with its line and key.

use super::assert_refused;

/// Texts, each with the error that it causes.
const INVALID_AGENTS_AND_CLIENTS: &[(&str, &str)] = &[
    (
        "[agents.cgi-bin]",
        ":1: agents.cgi-bin: cannot be an agent's name, since other paths of this proxy start with it",
    ),
    (r#"[agents."a b"]"#, r#":1: agents."a b": is not a name; use letters, digits, _ and -"#),
    (r#"[agents."人事"]"#, r#":1: agents."人事": is not a name; use letters, digits, _ and -"#),
    ("[agents.'']", r#":1: agents."": is not a name; use letters, digits, _ and -"#),
    (
        "[agents.x]\nsecret = { env = \"HR\" }",
        r#":1: agents.x.corpid: is missing; write one like corpid = "ww1234567890abcdef""#,
    ),
    (
        "[agents.x]\ncorpid = \"ww1\"",
        r#":1: agents.x.secret: is missing; write one like secret = { env = "WECOM_HR_SECRET" }"#,
    ),
    (
        "[agents.x]\ncorpid = \"w w\"\nsecret = { env = \"HR\" }",
        r#":2: agents.x.corpid: "w w" is not a corpid; a corpid is visible ASCII without spaces"#,
    ),
    (
        "[agents.x]\ncorpid = \"YOUR_CORPID\"\nsecret = { env = \"HR\" }",
        ":2: agents.x.corpid: is a placeholder; replace it with the real one",
    ),
    (
        "[agents.x]\ncorpid = \"wwxxxxxxxxxxxxxxxx\"\nsecret = { env = \"HR\" }",
        ":2: agents.x.corpid: is a placeholder; replace it with the real one",
    ),
    (
        "[agents.x]\ncorpid = 1",
        r#":2: agents.x.corpid: must be a string like "ww1234567890abcdef", not a whole number"#,
    ),
    (
        "[agents.x]\ncorpid = \"ww1\"\nsecert = \"hunter2\"",
        r#":3: agents.x.secert: unknown key "secert"; did you mean "secret"? allowed: corpid, secret, upstream, agentid, accept_secret, limit, plain, jssdk_origins"#,
    ),
    (r#"agents.x = "hunter2""#, ":1: agents.x: must be a table with corpid and secret, not a string"),
    (
        "[agents.xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx]",
        ":1: agents.xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx: is too long for a name; at most 64 characters",
    ),
    (
        "[agents.x]\ncorpid = \"ww1\"\nsecret = { env = \"HR\" }\nagentid = \"1000002\"",
        ":4: agents.x.agentid: must be a whole number, 0 or more, not a string",
    ),
    (
        "[agents.x]\ncorpid = \"ww1\"\nsecret = { env = \"HR\" }\nagentid = -1",
        ":4: agents.x.agentid: must be a whole number, 0 or more, not -1",
    ),
    (
        "[agents.x]\ncorpid = \"ww1\"\nsecret = { env = \"HR\" }\naccept_secret = 1",
        ":4: agents.x.accept_secret: must be true or false, not a whole number",
    ),
    (
        "[agents.x]\ncorpid = \"ww1\"\nsecret = { env = \"HR\" }\nlimit = \"600\"",
        r#":4: agents.x.limit: "600" is not a limit like "600/m" (/s, /m, /h)"#,
    ),
    (
        "[agents.x]\ncorpid = \"ww1\"\nsecret = { env = \"HR\" }\nlimit = \"0/m\"",
        ":4: agents.x.limit: would allow no request; the count must be 1 or more",
    ),
    (
        "[agents.x]\ncorpid = \"ww1\"\nsecret = { env = \"HR\" }\nlimit = 600",
        r#":4: agents.x.limit: must be a limit like "600/m" (/s, /m, /h), not a whole number"#,
    ),
    (
        "[agents.x]\ncorpid = \"ww1\"\nsecret = { env = \"HR\" }\nplain = \"/cgi-bin/x\"",
        r#":4: agents.x.plain: must be a list of paths like ["/cgi-bin/corpgroup/*"], not a string"#,
    ),
    (
        "[agents.x]\ncorpid = \"ww1\"\nsecret = { env = \"HR\" }\nplain = [\"/x\"]",
        r#":4: agents.x.plain[0]: "/x" must start with /cgi-bin/; nothing else is forwarded"#,
    ),
    (
        "[agents.x]\ncorpid = \"ww1\"\nsecret = { env = \"HR\" }\nplain = [\"/cgi-bin/x\", \"/cgi-bin/x?y\"]",
        r#":4: agents.x.plain[1]: "/cgi-bin/x?y" contains '?'; a pattern is a plain path, without query or escapes"#,
    ),
    (
        "[agents.x]\ncorpid = \"ww1\"\nsecret = { env = \"HR\" }\nplain = [\"/cgi-bin/\"]",
        r#":4: agents.x.plain[0]: "/cgi-bin/" ends in a slash; write "/cgi-bin/*" for everything below it"#,
    ),
    (
        "[agents.x]\ncorpid = \"ww1\"\nsecret = { env = \"HR\" }\nplain = [\"/cgi-bin/a/../b\"]",
        r#":4: agents.x.plain[0]: "/cgi-bin/a/../b" contains an empty segment, ".", ".." or "**"; a last "/*" means everything below"#,
    ),
    (
        "[clients.a]",
        r#":1: clients.a: has no key; write key_sha256 = "…" ("wecom-proxy key NAME" generates one) or key = { env = "NAME" }"#,
    ),
    (
        "[clients.a]\nagents = [\"hr\"]",
        r#":1: clients.a: has no key; write key_sha256 = "…" ("wecom-proxy key NAME" generates one) or key = { env = "NAME" }"#,
    ),
    (
        "[clients.a]\nkey_sha256 = \"HASH\"\n",
        r#":1: clients.a.agents: is missing; write one like agents = ["hr"], or ["*"] for all"#,
    ),
    (
        "[clients.a]\nkey_sha256 = \"HASH\"\nkey = { env = \"KEY\" }\nagents = [\"hr\"]",
        ":3: clients.a.key: conflicts with key_sha256; keep one of the two",
    ),
    (
        "[clients.a]\nkey_sha256 = \"hunter2\"\nagents = [\"hr\"]",
        r#":2: clients.a.key_sha256: must be the key's SHA-256 in 64 hex digits, as "wecom-proxy key NAME" prints it"#,
    ),
    (
        "[clients.a]\nkey = { env = \"NONE\" }\nagents = [\"hr\"]",
        ":2: clients.a.key.env: the environment variable NONE is not set; set it where this command and the proxy run",
    ),
    (
        "[clients.a]\nkey_sha256 = \"HASH\"\nagents = \"hr\"",
        r#":3: clients.a.agents: must be a list of agents like ["hr"], or ["*"] for all, not a string"#,
    ),
    (
        "[clients.a]\nkey_sha256 = \"HASH\"\nagents = []",
        r#":3: clients.a.agents: is empty; write a list of agents like ["hr"], or ["*"] for all"#,
    ),
    (
        "[clients.a]\nkey_sha256 = \"HASH\"\nagents = [\"hx\"]",
        r#":3: clients.a.agents[0]: there is no agent "hx"; did you mean "hr"? there are: hr"#,
    ),
    (
        "[clients.a]\nkey_sha256 = \"HASH\"\nagents = [\"sales\"]",
        r#":3: clients.a.agents[0]: there is no agent "sales"; there are: hr"#,
    ),
    (
        "[clients.a]\nkey_sha256 = \"HASH\"\nagents = [\"hr\", \"*\"]",
        ":3: clients.a.agents[1]: means all agents, so it must be the only entry; only suites and providers stand beside it",
    ),
    (
        "[clients.a]\nkey_sha256 = \"HASH\"\nagents = [1]",
        ":3: clients.a.agents[0]: must be an agent's name, not a whole number",
    ),
    (
        "[clients.a]\nkey_sha256 = \"0000000000000000000000000000000000000000000000000000000000000000\"\nagents = [\"hr\"]",
        r#":2: clients.a.key_sha256: is a placeholder, not the hash of a key; replace it with what "wecom-proxy key NAME" prints"#,
    ),
    (
        "[clients.a]\nkey_sha256 = \"HASH\"\nagents = [\"hr\"]\nallow = []",
        ":4: clients.a.allow: is empty, which would allow nothing; without this key everything is allowed",
    ),
    (
        "[clients.a]\nkey_sha256 = \"HASH\"\nagents = [\"hr\"]\nallow = \"/cgi-bin/x\"",
        r#":4: clients.a.allow: must be a list like ["POST /cgi-bin/message/send", "/cgi-bin/user/*"], not a string"#,
    ),
    (
        "[clients.a]\nkey_sha256 = \"HASH\"\nagents = [\"hr\"]\nallow = [\n  \"GET /cgi-bin/x\",\n  \"/x\",\n]",
        r#":6: clients.a.allow[1]: "/x" must start with /cgi-bin/; nothing else is forwarded"#,
    ),
    (
        "[clients.a]\nkey_sha256 = \"HASH\"\nagents = [\"hr\"]\nallow = [\"PSOT /cgi-bin/x\"]",
        r#":4: clients.a.allow[0]: "PSOT" is not a method; did you mean "POST"? allowed: GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS"#,
    ),
    (
        "[clients.a]\nkey_sha256 = \"HASH\"\nagents = [\"hr\"]\nallow = [\"post /cgi-bin/x\"]",
        r#":4: clients.a.allow[0]: "post" is not a method; did you mean "POST"? allowed: GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS"#,
    ),
    (
        "[clients.a]\nkey_sha256 = \"HASH\"\nagents = [\"hr\"]\nallow = [\"GET  /cgi-bin/x\"]",
        r#":4: clients.a.allow[0]: " /cgi-bin/x" must start with /cgi-bin/; nothing else is forwarded"#,
    ),
    (
        "[clients.a]\nkey_sha256 = \"HASH\"\nagents = [\"hr\"]\nalways200 = true",
        r#":4: clients.a.always200: unknown key "always200"; did you mean "always_200"? allowed: key_sha256, key, key_in, agents, allow, limit, always_200"#,
    ),
    (
        "[clients.a]\nkey_sha256 = \"HASH\"\nagents = [\"hr\"]\nlimit = \"6/d\"",
        r#":4: clients.a.limit: "6/d" is not a limit like "600/m" (/s, /m, /h)"#,
    ),
    (
        "[clients.a]\nkey_sha256 = \"HASH\"\nagents = [\"hr\"]\n[clients.b]\nkey_sha256 = \"HASH\"\nagents = [\"hr\"]",
        ":5: clients.b.key_sha256: is the same key as the one in proxy.toml:2; each client needs its own",
    ),
    (r#"[clients."a/b"]"#, r#":1: clients."a/b": is not a name; use letters, digits, _ and -"#),
];

#[test]
fn invalid_agents_and_clients_are_refused() {
    assert_refused(INVALID_AGENTS_AND_CLIENTS);
}
