// What the page says, in both languages.
const WORDS = {
  en: {
    skip: "Skip to recent exchanges", reload: "Reload configuration", other: "中文", lastHour: "Last hour",
    agents: "Agents", findAgent: "Find", onlyFailing: "only those in trouble", exchanges: "Recent exchanges",
    agent: "Agent", client: "Client", status: "Status", path: "Path", clear: "Clear", pause: "Pause", resume: "Resume",
    announce: "read new ones aloud", clients: "Clients", redacted: "Nothing here holds a secret, key, token or pass.",
    cancel: "Cancel", close: "Close", token: "Token", expiry: "Expires", age: "age", lastRenewal: "Last renewal",
    errcodes: "Errcodes, last hour", requests: "Requests", failed: "Failed", actions: "Actions", renew: "Renew",
    renewOf: "Renew the token of {0}", inspect: "Look inside", inspectOf: "Look inside: keep headers and bodies of {0} for 10 minutes",
    inspectEnd: "Stop looking", inspectEndOf: "Stop looking: no longer keep headers and bodies of {0}",
    askRenew: "Renew the token of {0}?", askRenewWords: "This calls gettoken at once, whatever failed before. WeCom bans the address of who repeats a wrong secret.",
    askInspect: "Look inside the exchanges of {0}?", askInspectWords: "For 10 minutes, header lines and the first 4 KiB of both bodies are kept in memory, without secrets. They may hold personal data.",
    askReload: "Reload the configuration?", askReloadWords: "Agents, clients, limits, log level and certificates are read again. A file with a mistake changes nothing.",
    yesRenew: "Renew", yesInspect: "Look inside", yesReload: "Reload",
    renewed: "{0}: a new token, it expires at {1}.", renewedSame: "{0}: WeCom returned the same token; it still serves.",
    notRenewed: "{0}: no token: {1}. Next try in {2}.", reloaded: "Reloaded: {0} agents, {1} clients.",
    needsRestart: "Needs a restart: {0}.", notReloaded: "Not reloaded: {0}", inspecting: "{0}: headers and bodies are kept until {1}.",
    inspectEnded: "{0}: headers and bodies are no longer kept.", failedTo: "That failed: {0}",
    valid: "valid", refused: "refused", expired: "expired", none: "none", noneYet: "not asked for yet", failing: "failing", held: "renewal held back",
    nextTry: "next try in {0}", ok: "ok", inUntil: "in {0}", since: "{0} ago", lookedUntil: "looked into until {0}",
    first: "first token", expiredReason: "had expired", refusedReason: "was refused", ahead: "ahead of expiry", asked: "on order", sharedReason: "by another replica",
    perMinute: "Requests a minute", errors: "Failed a minute", latency: "Latency, ms", total: "requests", inFlight: "in flight",
    connections: "connections", failedShare: "failed",
    store: "store {0}", unwell: "store {0} is away", of: "{0}–{1} of {2}", before: "Previous", next: "Next", noAgents: "No agent matches.",
    time: "Time", method: "Method", took: "Took", noExchanges: "No exchange matches. The next one appears here.",
    uses: "Agents used", nobody: "(without a key)", noClients: "No calls in the last hour.", unlisted: "and {0} requests of others",
    live: "Live: new exchanges appear at the top.", paused: "Paused. {0} came meanwhile.", broken: "The live stream broke off; trying again.", badFilter: "Not live: errcode is a number, and status one like 502 or 5xx.",
    lost: "{0} exchanges came too fast to be shown.", spoken: "{0} {1}, status {2}, errcode {3}",
    noAnswer: "no answer", retried: "sent twice", copyCurl: "Copy as curl", copied: "Copied.", cannotCopy: "The browser does not allow copying; select the text instead.",
    requestId: "Request id", peer: "Caller", hint: "What it means", todo: "What to do", where: "In the admin console", timings: "Timings",
    queue: "queue", waitToken: "token", tryN: "try {0}", upstream: "WeCom", rest: "proxy and body", retriedFor: "The token was refused with {0}; the request was sent once more with the next one.",
    requestBytes: "Request body", bytes: "Answer body", bytesOf: "{0} bytes", cutOff: "broke off", ownError: "Error of the proxy", reqHeaders: "Request headers", reqBody: "Request body",
    resHeaders: "Answer headers", resBody: "Answer body", firstAnswer: "Answer to try {0}, not passed on", query: "Query", more: "… more follows, not kept", binary: "… what follows is no text",
    empty: "(empty)", notKept: "Headers and bodies were not kept. “Look inside” at the agent keeps them for 10 minutes.", gone: "This exchange is no longer kept.", dropped: "Headers and bodies were dropped: taking secrets out of them came too late or took too long.",
    cannotReach: "The proxy does not answer; trying again.", unauthorized: "The key is missing or wrong. Reload the page to enter it.", curl: "curl",
  },
  zh: {
    skip: "跳到最近的请求", reload: "重新加载配置", other: "English", lastHour: "最近一小时",
    agents: "应用", findAgent: "查找", onlyFailing: "只看有问题的", exchanges: "最近的请求",
    agent: "应用", client: "调用方", status: "状态码", path: "路径", clear: "清除", pause: "暂停", resume: "继续",
    announce: "朗读新请求", clients: "调用方", redacted: "这里的内容都不含 secret、密钥、token 或通行证。",
    cancel: "取消", close: "关闭", token: "Token", expiry: "过期", age: "已用", lastRenewal: "最近一次换取",
    errcodes: "最近一小时的 errcode", requests: "请求数", failed: "失败", actions: "操作", renew: "换取",
    renewOf: "换取 {0} 的 token", inspect: "查看内容", inspectOf: "查看内容：保留 {0} 的请求头和正文 10 分钟",
    inspectEnd: "停止查看", inspectEndOf: "停止查看：不再保留 {0} 的请求头和正文",
    askRenew: "换取 {0} 的 token？", askRenewWords: "将立即调用 gettoken，不管之前为何失败。反复使用错误的 secret，企业微信会封禁本机地址。",
    askInspect: "查看 {0} 的请求内容？", askInspectWords: "在 10 分钟内，请求头、响应头和正文的前 4 KiB 会保留在内存中，其中的密钥已去除，但可能含有个人数据。",
    askReload: "重新加载配置？", askReloadWords: "重新读取应用、调用方、限额、日志级别和证书。文件有错时什么都不会改变。",
    yesRenew: "换取", yesInspect: "查看内容", yesReload: "重新加载",
    renewed: "{0}：已换取新 token，{1} 过期。", renewedSame: "{0}：企业微信返回了同一个 token，它仍然有效。",
    notRenewed: "{0}：没有换到 token：{1}。{2}后重试。", reloaded: "已重新加载：{0} 个应用，{1} 个调用方。",
    needsRestart: "需要重启：{0}。", notReloaded: "没有重新加载：{0}", inspecting: "{0}：请求头和正文保留到 {1}。",
    inspectEnded: "{0}：不再保留请求头和正文。", failedTo: "失败：{0}",
    valid: "有效", refused: "被拒绝", expired: "已过期", none: "无", noneYet: "尚未用到", failing: "失败", held: "暂缓换取",
    nextTry: "{0}后重试", ok: "成功", inUntil: "{0}后", since: "{0}前", lookedUntil: "正在查看，到 {0}",
    first: "首次换取", expiredReason: "已过期", refusedReason: "被拒绝", ahead: "提前换取", asked: "手动换取", sharedReason: "由其他副本换取",
    perMinute: "每分钟请求数", errors: "每分钟失败数", latency: "耗时（毫秒）", total: "请求", inFlight: "处理中",
    connections: "连接", failedShare: "失败",
    store: "存储 {0}", unwell: "存储 {0} 不可用", of: "第 {0}–{1} 个，共 {2} 个", before: "上一页", next: "下一页", noAgents: "没有符合的应用。",
    time: "时间", method: "方法", took: "耗时", noExchanges: "没有符合的请求。新的请求会出现在这里。",
    uses: "用到的应用", nobody: "（没有密钥）", noClients: "最近一小时没有调用。", unlisted: "以及其他 {0} 个请求",
    live: "实时：新请求出现在最上面。", paused: "已暂停，期间有 {0} 个新请求。", broken: "实时流断开，正在重连。", badFilter: "没有实时更新：errcode 是数字，状态码如 502 或 5xx。",
    lost: "有 {0} 个请求来得太快，没有显示。", spoken: "{0} {1}，状态码 {2}，errcode {3}",
    noAnswer: "没有应答", retried: "发送了两次", copyCurl: "复制为 curl", copied: "已复制。", cannotCopy: "浏览器不允许复制，请选中文本自行复制。",
    requestId: "请求编号", peer: "来源", hint: "含义", todo: "处理办法", where: "在管理后台", timings: "耗时分布",
    queue: "排队", waitToken: "token", tryN: "第 {0} 次", upstream: "企业微信", rest: "代理和正文", retriedFor: "token 因 {0} 被拒绝，请求用新 token 重发了一次。",
    requestBytes: "请求体", bytes: "响应体", bytesOf: "{0} 字节", cutOff: "中途断开", ownError: "代理自身的错误", reqHeaders: "请求头", reqBody: "请求体",
    resHeaders: "响应头", resBody: "响应体", firstAnswer: "第 {0} 次的应答，未转给调用方", query: "查询参数", more: "…… 后面还有，没有保留", binary: "…… 后面不是文本",
    empty: "（空）", notKept: "没有保留请求头和正文。在应用处点“查看内容”，可保留 10 分钟。", gone: "这个请求已不再保留。", dropped: "请求头和正文已丢弃：脱敏来不及或耗时过长。",
    cannotReach: "代理没有应答，正在重试。", unauthorized: "密钥缺失或有误。刷新页面后输入。", curl: "curl",
  },
};

const LANGUAGE_PLACE = "wecom-proxy-language";
let language = chosenLanguage();

function chosenLanguage() {
  let kept = null;
  try { kept = localStorage.getItem(LANGUAGE_PLACE); } catch { /* Storage may be forbidden. */ }
  return kept in WORDS ? kept : (navigator.language || "en").toLowerCase().startsWith("zh") ? "zh" : "en";
}

function say(word, ...parts) {
  return WORDS[language][word].replace(/\{(\d)\}/g, (_, nth) => String(parts[nth]));
}

function sayEverywhere() {
  document.documentElement.lang = language === "zh" ? "zh-CN" : "en";
  for (const place of document.querySelectorAll("[data-words]")) place.textContent = say(place.dataset.words);
  byId("language").textContent = say("other");
  byId("language").lang = language === "zh" ? "en" : "zh-CN";
}

function switchLanguage() {
  language = language === "zh" ? "en" : "zh";
  try { localStorage.setItem(LANGUAGE_PLACE, language); } catch { /* It lasts as long as the page. */ }
  sayEverywhere();
}
