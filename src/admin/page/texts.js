// The texts of the page, in both languages.
const TEXTS = {
  en: {
    skip: "Skip to recent exchanges", reload: "Reload configuration", other: "中文", lastHour: "Last hour",
    agents: "Agents", findAgent: "Find", onlyFailing: "only failing ones", exchanges: "Recent exchanges",
    agent: "Agent", client: "Client", status: "Status", path: "Path", clear: "Clear", pause: "Pause", resume: "Resume",
    announce: "announce new ones to screen readers", clients: "Clients", redacted: "Secrets, keys, tokens and passes are masked.",
    cancel: "Cancel", close: "Close", token: "Token", expiry: "Expires", age: "age", lastRefresh: "Last refresh",
    errcodes: "Errcodes, last hour", requests: "Requests", failed: "Failed", actions: "Actions", refresh: "Refresh",
    refreshOf: "Refresh the token of {0}", inspect: "Look inside", inspectOf: "Look inside: capture headers and bodies of {0} for 10 minutes",
    inspectEnd: "Stop looking", inspectEndOf: "Stop looking: no longer capture headers and bodies of {0}",
    confirmRefresh: "Refresh the token of {0}?", confirmRefreshDetail: "This calls gettoken at once, even during a backoff. WeCom bans IP addresses that repeat a wrong secret.",
    confirmInspect: "Look inside the exchanges of {0}?", confirmInspectDetail: "For 10 minutes, headers and the first 4 KiB of both bodies are kept in memory, with secrets masked. They may contain personal data.",
    confirmReload: "Reload the configuration?", confirmReloadDetail: "Agents, clients, limits, log level and certificates are read again. An invalid file changes nothing.",
    refreshButton: "Refresh", inspectButton: "Look inside", reloadButton: "Reload",
    refreshed: "{0}: a new token, which expires at {1}.", refreshedSame: "{0}: WeCom returned the same token; it is still valid.",
    notRefreshed: "{0}: no token: {1}. Next attempt in {2}.", reloaded: "Reloaded: {0} agents, {1} clients.",
    needsRestart: "Needs a restart: {0}.", notReloaded: "Reload failed: {0}", inspecting: "{0}: headers and bodies are captured until {1}.",
    inspectEnded: "{0}: headers and bodies are no longer captured.", error: "Error: {0}",
    valid: "valid", refused: "refused", expired: "expired", none: "none", noneYet: "not used yet", failing: "failing", held: "refresh held back",
    nextAttempt: "next attempt in {0}", ok: "ok", inUntil: "in {0}", since: "{0} ago", capturingUntil: "capturing until {0}",
    first: "first token", expiredReason: "had expired", refusedReason: "was refused", proactive: "before expiry", manual: "manual", sharedReason: "by another replica",
    perMinute: "Requests per minute", errors: "Failed per minute", latency: "Latency, ms", total: "requests", inFlight: "in flight",
    connections: "connections", failedShare: "failed",
    store: "store {0}", storeUnavailable: "store {0} unavailable", of: "{0}–{1} of {2}", previous: "Previous", next: "Next", noAgents: "No agent matches.",
    time: "Time", method: "Method", took: "Took", noExchanges: "No exchange matches. The next one appears here.",
    uses: "Agents used", noKey: "(without a key)", noClients: "No calls in the last hour.", unlisted: "and {0} requests of others",
    live: "Live: new exchanges appear at the top.", paused: "Paused. {0} new exchanges.", broken: "Live stream disconnected; reconnecting.", badFilter: "Not live: errcode must be a number, and status a value like 502 or 5xx.",
    lost: "{0} exchanges arrived too fast to be shown.", announcement: "{0} {1}, status {2}, errcode {3}",
    noResponse: "no response", retried: "retried", copyCurl: "Copy as curl", copied: "Copied.", cannotCopy: "The browser does not allow copying; select the text instead.",
    requestId: "Request id", peer: "Caller", hint: "What it means", todo: "What to do", where: "In the admin console", timings: "Timings",
    queue: "queue", waitToken: "token", attemptN: "attempt {0}", upstream: "WeCom", rest: "proxy and body", retriedFor: "The token was refused with {0}; the request was retried with a new one.",
    requestBytes: "Request body", bytes: "Response body", bytesOf: "{0} bytes", incomplete: "incomplete", proxyError: "Proxy error", reqHeaders: "Request headers", reqBody: "Request body",
    resHeaders: "Response headers", resBody: "Response body", refusedResponse: "Response to attempt {0}, not forwarded", query: "Query", more: "… truncated", binary: "… the rest is not text",
    empty: "(empty)", notCaptured: "Headers and bodies were not captured. “Look inside” at the agent captures them for 10 minutes.", gone: "This exchange is no longer stored.", dropped: "Headers and bodies were dropped: masking their secrets started too late or took too long.",
    unreachable: "The proxy does not respond; retrying.", unauthorized: "The key is missing or wrong. Reload the page to enter it.", curl: "curl",
  },
  zh: {
    skip: "跳到最近的请求", reload: "重新加载配置", other: "English", lastHour: "最近一小时",
    agents: "应用", findAgent: "查找", onlyFailing: "只看有问题的", exchanges: "最近的请求",
    agent: "应用", client: "调用方", status: "状态码", path: "路径", clear: "清除", pause: "暂停", resume: "继续",
    announce: "朗读新请求", clients: "调用方", redacted: "这里的内容都不含 secret、密钥、token 或通行证。",
    cancel: "取消", close: "关闭", token: "Token", expiry: "过期", age: "已用", lastRefresh: "最近一次换取",
    errcodes: "最近一小时的 errcode", requests: "请求数", failed: "失败", actions: "操作", refresh: "换取",
    refreshOf: "换取 {0} 的 token", inspect: "查看内容", inspectOf: "查看内容：保留 {0} 的请求头和正文 10 分钟",
    inspectEnd: "停止查看", inspectEndOf: "停止查看：不再保留 {0} 的请求头和正文",
    confirmRefresh: "换取 {0} 的 token？", confirmRefreshDetail: "将立即调用 gettoken，不管之前为何失败。反复使用错误的 secret，企业微信会封禁本机地址。",
    confirmInspect: "查看 {0} 的请求内容？", confirmInspectDetail: "在 10 分钟内，请求头、响应头和正文的前 4 KiB 会保留在内存中，其中的密钥已去除，但可能含有个人数据。",
    confirmReload: "重新加载配置？", confirmReloadDetail: "重新读取应用、调用方、限额、日志级别和证书。文件有错时什么都不会改变。",
    refreshButton: "换取", inspectButton: "查看内容", reloadButton: "重新加载",
    refreshed: "{0}：已换取新 token，{1} 过期。", refreshedSame: "{0}：企业微信返回了同一个 token，它仍然有效。",
    notRefreshed: "{0}：没有换到 token：{1}。{2}后重试。", reloaded: "已重新加载：{0} 个应用，{1} 个调用方。",
    needsRestart: "需要重启：{0}。", notReloaded: "没有重新加载：{0}", inspecting: "{0}：请求头和正文保留到 {1}。",
    inspectEnded: "{0}：不再保留请求头和正文。", error: "失败：{0}",
    valid: "有效", refused: "被拒绝", expired: "已过期", none: "无", noneYet: "尚未用到", failing: "失败", held: "暂缓换取",
    nextAttempt: "{0}后重试", ok: "成功", inUntil: "{0}后", since: "{0}前", capturingUntil: "正在查看，到 {0}",
    first: "首次换取", expiredReason: "已过期", refusedReason: "被拒绝", proactive: "提前换取", manual: "手动换取", sharedReason: "由其他副本换取",
    perMinute: "每分钟请求数", errors: "每分钟失败数", latency: "耗时（毫秒）", total: "请求", inFlight: "处理中",
    connections: "连接", failedShare: "失败",
    store: "存储 {0}", storeUnavailable: "存储 {0} 不可用", of: "第 {0}–{1} 个，共 {2} 个", previous: "上一页", next: "下一页", noAgents: "没有符合的应用。",
    time: "时间", method: "方法", took: "耗时", noExchanges: "没有符合的请求。新的请求会出现在这里。",
    uses: "用到的应用", noKey: "（没有密钥）", noClients: "最近一小时没有调用。", unlisted: "以及其他 {0} 个请求",
    live: "实时：新请求出现在最上面。", paused: "已暂停，期间有 {0} 个新请求。", broken: "实时流断开，正在重连。", badFilter: "没有实时更新：errcode 是数字，状态码如 502 或 5xx。",
    lost: "有 {0} 个请求来得太快，没有显示。", announcement: "{0} {1}，状态码 {2}，errcode {3}",
    noResponse: "没有应答", retried: "发送了两次", copyCurl: "复制为 curl", copied: "已复制。", cannotCopy: "浏览器不允许复制，请选中文本自行复制。",
    requestId: "请求编号", peer: "来源", hint: "含义", todo: "处理办法", where: "在管理后台", timings: "耗时分布",
    queue: "排队", waitToken: "token", attemptN: "第 {0} 次", upstream: "企业微信", rest: "代理和正文", retriedFor: "token 因 {0} 被拒绝，请求用新 token 重发了一次。",
    requestBytes: "请求体", bytes: "响应体", bytesOf: "{0} 字节", incomplete: "中途断开", proxyError: "代理自身的错误", reqHeaders: "请求头", reqBody: "请求体",
    resHeaders: "响应头", resBody: "响应体", refusedResponse: "第 {0} 次的应答，未转给调用方", query: "查询参数", more: "…… 后面还有，没有保留", binary: "…… 后面不是文本",
    empty: "（空）", notCaptured: "没有保留请求头和正文。在应用处点“查看内容”，可保留 10 分钟。", gone: "这个请求已不再保留。", dropped: "请求头和正文已丢弃：脱敏来不及或耗时过长。",
    unreachable: "代理没有应答，正在重试。", unauthorized: "密钥缺失或有误。刷新页面后输入。", curl: "curl",
  },
};

const LANGUAGE_KEY = "wecom-proxy-language";
let language = initialLanguage();

function initialLanguage() {
  let stored = null;
  try { stored = localStorage.getItem(LANGUAGE_KEY); } catch { /* Storage may be disabled. */ }
  return stored in TEXTS ? stored : (navigator.language || "en").toLowerCase().startsWith("zh") ? "zh" : "en";
}

function translate(key, ...values) {
  return TEXTS[language][key].replace(/\{(\d)\}/g, (_, nth) => String(values[nth]));
}

function translatePage() {
  document.documentElement.lang = language === "zh" ? "zh-CN" : "en";
  for (const element of document.querySelectorAll("[data-text]")) element.textContent = translate(element.dataset.text);
  byId("language").textContent = translate("other");
  byId("language").lang = language === "zh" ? "en" : "zh-CN";
}

function switchLanguage() {
  language = language === "zh" ? "en" : "zh";
  try { localStorage.setItem(LANGUAGE_KEY, language); } catch { /* Without storage, the choice lasts until the page is closed. */ }
  translatePage();
}
