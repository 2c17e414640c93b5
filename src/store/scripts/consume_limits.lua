-- Takes from rate limits (GCRA). A limit is stored as FULL@WRITTEN: when it is fully refilled and when that was
-- written, in microseconds since 1970; a full limit has no key.
--
-- KEYS: the limits. ARGV: how many microseconds ago the first request was taken at most, then for each limit the
-- refill time of what was taken, in microseconds. Returns for each limit in how many microseconds it is fully
-- refilled.
local time = redis.call('TIME')
local now = tonumber(time[1]) * 1000000 + tonumber(time[2])
local since = tonumber(ARGV[1])
-- An upper bound: no limit has a period above an hour, and 100 replicas at most take all of one at once.
local max_ahead = 100 * 3600 * 1000000

-- In how many microseconds a limit is full. If the clock went back since, or is another server's, the distance
-- is taken as it was when it was written.
local function ahead(text)
    local full, written = string.match(text or '', '^(%d+)@(%d+)$')
    if not written then return -since end
    local ahead = tonumber(full) - math.max(now, tonumber(written))
    return ahead < max_ahead and math.max(ahead, -since) or -since
end

local results = {}
for nth, key in ipairs(KEYS) do
    local found = redis.call('TYPE', key).ok
    if found ~= 'none' and found ~= 'string' then redis.call('DEL', key) end
    local taken = tonumber(ARGV[nth + 1])
    local full_in = ahead(redis.call('GET', key)) + taken
    if taken > 0 then
        local life = math.max(1, math.ceil((full_in + since) / 1000))
        redis.call('SET', key, string.format('%.0f@%.0f', now + full_in, now), 'PX', string.format('%.0f', life))
    end
    results[nth] = full_in
end
return results
