// The texts of the page, in both languages.
const TEXTS = {
  en: {
    skip: "Skip to recent exchanges", reload: "Reload configuration", other: "中文", lastMinute: "Last whole minute", lastMinutes: "Last {0} whole minutes", runningMinute: "This minute",
    perSecond: "requests/s", outage: "outage", refused: "refused here", wecom: "refused by WeCom", caller: "caller's mistakes", slowest: "slowest p99", uptime: "up {0}", zone: "times in {0}",
    startMark: "start", limits: "Limits in use", limit: "Limit", queueLimit: "requests waiting for upstream.max_in_flight", limitUsed: "Limit used", lastSeen: "Last seen", now: "now",
    moreClients: "and {0} more clients", inTrouble: "{0} in trouble", moreTroubles: "and {0} more", trouble: "trouble", timeouts: "time-outs", halfFailed: "half fail",
    failingSince: "for {0}: {1} failures; of the last 5 minutes {2} of {3}", sort: "Sort by", sortTrouble: "trouble", sortName: "name", sortRequests: "requests", sortFailed: "failed",
    failedFilter: "Failed", any: "any", anyFailure: "failed", moreFilters: "More filters", kindFilter: "Proxy error", slowerThan: "Slower than", traceId: "Trace id", trace: "Trace", older: "Older exchanges", queryNames: "Query (names)",
    callbacks: "Callbacks", callback: "Callback", target: "Target", received: "Received", waiting: "Waiting", oldest: "Oldest", lastSuccess: "Last success", lastError: "Last error", dead: "Dead letters",
    aMinute: "{0} a minute", deadLetters: "Dead letters of {0}", event: "Event", attempts: "Attempts", redeliver: "Redeliver", redelivered: "Redelivered to {0}.",
    settings: "Configuration", showSettings: "Settings in force, without secrets", setting: "Setting", value: "Value", applied: "Applied by", byReload: "reload", byRestart: "restart",
    changedSetting: "changed in the file, needs a restart", isSet: "(set)", tracesSetting: "traces: {0}",
    suites: "Suites", suite: "Suite", ticketAge: "Ticket age", corps: "Corps", noTicket: "no ticket", noTicketOf: "no suite_ticket: {0}",
    missingQuery: "The values in the query were not captured: {0}.", missingBody: "The body was not captured ({0}): put it into the file body.", missingRest: "Only the start of the body was captured: put it into the file body.", missingMasked: "[masked] stands for what you have to fill in.",
    replay: "Replay", replayed: "Sent again: status {0}.", confirmReplay: "Send {0} again?", confirmReplayDetail: "WeCom carries it out once more: a message is sent twice, a member is changed twice.",
    operatorKey: "Key", keyTitle: "The operator's key", keyDetail: "A change needs the key of admin.key_sha256. It is kept until this page is closed.", useKey: "Continue",
    edit: "Edit", editOf: "Edit {0}", newAgent: "Add agent", newClient: "Add client", name: "name", verify: "fetch a token from WeCom before saving", save: "Save", saving: "Saving …", saved: "{0}: saved.", remove: "Remove", removed: "{0}: removed.",
    readOnly: "Defined in {0}; change it there.", keepSecret: "leave empty to keep it", confirmRemove: "Remove {0}?", confirmRemoveAgent: "Its requests get 404 from now on, and its passes are void.", confirmRemoveClient: "Its keys and passes are void at once.",
    keys: "Keys", newKey: "Make a key", madeKey: "Key {0}, shown only now:", removeKeyOf: "Remove key {0}", confirmRemoveKey: "Remove key {0}?", confirmRemoveKeyDetail: "Requests with it, and its passes, are refused at once.",
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
    valid: "valid", tokenRefused: "refused", expired: "expired", none: "none", noneYet: "not used yet", failing: "failing", held: "refresh held back",
    nextAttempt: "next attempt in {0}", ok: "ok", inUntil: "in {0}", since: "{0} ago", capturingUntil: "capturing until {0}",
    first: "first token", expiredReason: "had expired", refusedReason: "was refused", proactive: "before expiry", manual: "manual", sharedReason: "by another replica",
    perMinute: "Requests per minute", errors: "Failed per minute", latency: "Latency, ms", total: "requests", inFlight: "in flight",
    connections: "connections",
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
    quotas: "WeCom's quotas, more than half used", quota: "Quota", used: "Used", spentIn: "Spent", heldFor: "blocked for {0}",
    unreachable: "The proxy does not respond; retrying.", unreachableSince: "The proxy does not respond; last answer {0} ago.", unauthorized: "The key is missing or wrong. Reload the page to enter it.", curl: "curl",
  },
  zh: {
    skip: "跳到最近的请求", reload: "重新加载配置", other: "English", lastMinute: "最近一整分钟", lastMinutes: "最近 {0} 个整分钟", runningMinute: "当前一分钟",
    perSecond: "请求/秒", outage: "中断", refused: "代理拒绝", wecom: "企业微信拒绝", caller: "调用方有误", slowest: "最慢 p99", uptime: "已运行 {0}", zone: "时区 {0}",
    startMark: "启动", limits: "上限用量", limit: "上限", queueLimit: "等待 upstream.max_in_flight 的请求", limitUsed: "限流用量", lastSeen: "最近一次", now: "刚刚",
    moreClients: "以及其他 {0} 个调用方", inTrouble: "{0} 个应用有故障", moreTroubles: "以及其他 {0} 个", trouble: "故障", timeouts: "超时", halfFailed: "半数失败",
    failingSince: "已 {0}，失败 {1} 次；最近 5 分钟 {3} 个请求中 {2} 个失败", sort: "排序", sortTrouble: "故障优先", sortName: "名称", sortRequests: "请求数", sortFailed: "失败数",
    failedFilter: "失败", any: "不限", anyFailure: "失败的", moreFilters: "更多条件", kindFilter: "代理错误", slowerThan: "慢于", traceId: "追踪编号", trace: "追踪", older: "更早的请求", queryNames: "查询参数（名称）",
    callbacks: "回调", callback: "回调", target: "目标", received: "收到", waiting: "等待中", oldest: "最早", lastSuccess: "最近成功", lastError: "最近错误", dead: "死信",
    aMinute: "每分钟 {0} 个", deadLetters: "{0} 的死信", event: "事件", attempts: "尝试次数", redeliver: "重新投递", redelivered: "已重新投递到 {0}。",
    settings: "配置", showSettings: "当前生效的设置（不含机密）", setting: "设置", value: "值", applied: "生效方式", byReload: "重新加载", byRestart: "重启",
    changedSetting: "文件中已修改，需要重启", isSet: "（已设置）", tracesSetting: "链路追踪：{0}",
    suites: "套件", suite: "套件", ticketAge: "ticket 已收到", corps: "企业数", noTicket: "没有 ticket", noTicketOf: "没有 suite_ticket：{0}",
    missingQuery: "查询参数的值没有保留：{0}。", missingBody: "请求体没有保留（{0}）：请放入文件 body。", missingRest: "只保留了请求体的开头：请放入文件 body。", missingMasked: "[masked] 处需要自行填写。",
    replay: "重发", replayed: "已重发：状态码 {0}。", confirmReplay: "重发 {0}？", confirmReplayDetail: "企业微信会再执行一次：消息会再发一遍，成员会再改一遍。",
    operatorKey: "密钥", keyTitle: "管理员密钥", keyDetail: "修改需要 admin.key_sha256 对应的密钥，关闭页面前一直保留。", useKey: "继续",
    edit: "修改", editOf: "修改 {0}", newAgent: "添加应用", newClient: "添加调用方", name: "名称", verify: "保存前先向企业微信换取 token 验证", save: "保存", saving: "正在保存……", saved: "{0}：已保存。", remove: "删除", removed: "{0}：已删除。",
    readOnly: "定义在 {0}，请在那里修改。", keepSecret: "留空则不变", confirmRemove: "删除 {0}？", confirmRemoveAgent: "它的请求此后得到 404，通行证立即失效。", confirmRemoveClient: "它的密钥和通行证立即失效。",
    keys: "密钥", newKey: "新建密钥", madeKey: "密钥 {0}，只显示这一次：", removeKeyOf: "删除密钥 {0}", confirmRemoveKey: "删除密钥 {0}？", confirmRemoveKeyDetail: "使用它的请求及其通行证立即被拒绝。",
    agents: "应用", findAgent: "查找", onlyFailing: "只看有问题的", exchanges: "最近的请求",
    agent: "应用", client: "调用方", status: "状态码", path: "路径", clear: "清除", pause: "暂停", resume: "继续",
    announce: "朗读新请求", clients: "调用方", redacted: "这里的内容都不含 secret、密钥、token 或通行证。",
    cancel: "取消", close: "关闭", token: "Token", expiry: "过期", age: "已用", lastRefresh: "最近一次换取",
    errcodes: "最近一小时的 errcode", requests: "请求数", failed: "失败", actions: "操作", refresh: "换取",
    refreshOf: "换取 {0} 的 token", inspect: "查看内容", inspectOf: "查看内容：保留 {0} 的请求头和正文 10 分钟",
    inspectEnd: "停止查看", inspectEndOf: "停止查看：不再保留 {0} 的请求头和正文",
    confirmRefresh: "换取 {0} 的 token？", confirmRefreshDetail: "将立即调用 gettoken，不管之前为何失败。反复使用错误的 secret，企业微信会封禁本机地址。",
    confirmInspect: "查看 {0} 的请求内容？", confirmInspectDetail: "在 10 分钟内，请求头、响应头和正文的前 4 KiB 会保留在内存中，其中的密钥已去除，但可能含有个人数据。",
    confirmReload: "重新加载配置？", confirmReloadDetail: "重新读取应用、调用方、限流、日志级别和证书。文件有错时什么都不会改变。",
    refreshButton: "换取", inspectButton: "查看内容", reloadButton: "重新加载",
    refreshed: "{0}：已换取新 token，{1} 过期。", refreshedSame: "{0}：企业微信返回了同一个 token，它仍然有效。",
    notRefreshed: "{0}：没有换到 token：{1}。{2}后重试。", reloaded: "已重新加载：{0} 个应用，{1} 个调用方。",
    needsRestart: "需要重启：{0}。", notReloaded: "没有重新加载：{0}", inspecting: "{0}：请求头和正文保留到 {1}。",
    inspectEnded: "{0}：不再保留请求头和正文。", error: "失败：{0}",
    valid: "有效", tokenRefused: "被拒绝", expired: "已过期", none: "无", noneYet: "尚未用到", failing: "失败", held: "暂缓换取",
    nextAttempt: "{0}后重试", ok: "成功", inUntil: "{0}后", since: "{0}前", capturingUntil: "正在查看，到 {0}",
    first: "首次换取", expiredReason: "已过期", refusedReason: "被拒绝", proactive: "提前换取", manual: "手动换取", sharedReason: "由其他副本换取",
    perMinute: "每分钟请求数", errors: "每分钟失败数", latency: "耗时（毫秒）", total: "请求", inFlight: "处理中",
    connections: "连接",
    store: "存储 {0}", storeUnavailable: "存储 {0} 不可用", of: "第 {0}–{1} 个，共 {2} 个", previous: "上一页", next: "下一页", noAgents: "没有符合的应用。",
    time: "时间", method: "方法", took: "耗时", noExchanges: "没有符合的请求。新的请求会出现在这里。",
    uses: "用到的应用", noKey: "（没有密钥）", noClients: "最近一小时没有调用。", unlisted: "以及其他 {0} 个请求",
    live: "实时：新请求出现在最上面。", paused: "已暂停，期间有 {0} 个新请求。", broken: "实时流断开，正在重连。", badFilter: "没有实时更新：errcode 是数字，状态码如 502 或 5xx。",
    lost: "有 {0} 个请求来得太快，没有显示。", announcement: "{0} {1}，状态码 {2}，errcode {3}",
    noResponse: "没有响应", retried: "发送了两次", copyCurl: "复制为 curl", copied: "已复制。", cannotCopy: "浏览器不允许复制，请选中文本自行复制。",
    requestId: "请求编号", peer: "来源", hint: "含义", todo: "处理办法", where: "在管理后台", timings: "耗时分布",
    queue: "排队", waitToken: "token", attemptN: "第 {0} 次", upstream: "企业微信", rest: "代理和正文", retriedFor: "token 因 {0} 被拒绝，请求用新 token 重发了一次。",
    requestBytes: "请求体", bytes: "响应体", bytesOf: "{0} 字节", incomplete: "中途断开", proxyError: "代理自身的错误", reqHeaders: "请求头", reqBody: "请求体",
    resHeaders: "响应头", resBody: "响应体", refusedResponse: "第 {0} 次的响应，未转给调用方", query: "查询参数", more: "…… 后面还有，没有保留", binary: "…… 后面不是文本",
    empty: "（空）", notCaptured: "没有保留请求头和正文。在应用处点“查看内容”，可保留 10 分钟。", gone: "这个请求已不再保留。", dropped: "请求头和正文已丢弃：脱敏来不及或耗时过长。",
    quotas: "用量过半的企业微信频率限制", quota: "频率限制", used: "已用", spentIn: "用完", heldFor: "封禁中，还有 {0}",
    unreachable: "代理没有响应，正在重试。", unreachableSince: "代理没有响应，最近一次响应在 {0}前。", unauthorized: "密钥缺失或有误。刷新页面后输入。", curl: "curl",
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
