-- Returns the changes of followed records behind a version, in the order of versions: 'ok', the version up to which
-- they are complete, that of the newest transaction, then fields and records in turn. Where the caller has seen a newer
-- version than the store has, the store has lost writes: 'lost', and no later version is smaller than the caller's.
--
-- KEYS: records, changes, version. ARGV: version, how many records about.
local newest = tonumber(redis.call('GET', KEYS[3]) or '0') or 0
local since, limit = tonumber(ARGV[1]), tonumber(ARGV[2])
if newest < since then
    redis.call('SET', KEYS[3], ARGV[1])
    return { 'lost', ARGV[1], ARGV[1] }
end
local newest_text = string.format('%.0f', newest)
local reply = { 'ok', newest_text, newest_text }
if newest == since then return reply end
local fields = redis.call('ZRANGEBYSCORE', KEYS[2], '(' .. ARGV[1], '+inf', 'LIMIT', 0, limit)
if #fields == limit then
    -- A transaction is delivered as a whole.
    local last = string.format('%.0f', tonumber(redis.call('ZSCORE', KEYS[2], fields[limit])))
    fields = redis.call('ZRANGEBYSCORE', KEYS[2], '(' .. ARGV[1], last)
    reply[2] = last
end
for _, field in ipairs(fields) do
    reply[#reply + 1] = field
    reply[#reply + 1] = redis.call('HGET', KEYS[1], field) or ''
end
return reply
