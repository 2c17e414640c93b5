-- Returns the record of a name if it is newer than the caller's; else acquires the lease, if it is free. Values
-- of another type or out of range, however they got there, count as absent.
--
-- KEYS: record, lease, failure, counter. ARGV: the fence of the caller's record, the lease owner, the lease's
-- TTL in milliseconds, how many milliseconds a failure is kept after its backoff, 1 to ignore a failure. Returns
-- { kind, value, fence, milliseconds, 1 if the value was fetched under the lease of its fence, microseconds
-- since its fence }; for a failure the last is the current time.
local function delete_unless(key, kind)
    local found = redis.call('TYPE', key).ok
    if found ~= 'none' and found ~= kind then redis.call('DEL', key) end
end
delete_unless(KEYS[1], 'hash')
delete_unless(KEYS[2], 'string')
delete_unless(KEYS[3], 'string')
delete_unless(KEYS[4], 'string')

-- Fences are microseconds, so that they grow even after the store was wiped.
local time = redis.call('TIME')
local now = tonumber(time[1]) * 1000000 + tonumber(time[2])
-- A fence is an integer, at most a day ahead of the clock; anything else counts as 0, so that it cannot block
-- later fences.
local function fence_of(text)
    local fence = tonumber(text) or 0
    return fence > 0 and fence < now + 86400000000 and fence == math.floor(fence) and fence or 0
end
local max_value_bytes = 65536

local record = redis.call('HMGET', KEYS[1], 'value', 'fence', 'fresh')
local known, fence = fence_of(ARGV[1]), fence_of(record[2])
local life = redis.call('PTTL', KEYS[1])
if record[1] and #record[1] <= max_value_bytes and life > 0 and fence > known then
    return { 'record', record[1], fence, life, record[3] == '1' and 1 or 0, math.max(0, now - fence) }
end

local failure_ttl = tonumber(ARGV[4])
local failure = redis.call('GET', KEYS[3])
local wait = redis.call('PTTL', KEYS[3]) - failure_ttl
if failure and (#failure > max_value_bytes or wait > failure_ttl) then
    redis.call('DEL', KEYS[3])
    failure = false
end
if failure and ARGV[5] ~= '1' and wait > 0 then return { 'failed', failure, 0, wait, 0, now } end

-- A lease without a TTL, or with a longer one than any replica sets, is foreign: it is removed.
local left = redis.call('PTTL', KEYS[2])
if left == -1 or left > 2 * ARGV[3] then redis.call('DEL', KEYS[2]) end
if not redis.call('SET', KEYS[2], ARGV[2], 'NX', 'PX', ARGV[3]) then
    return { 'taken', '', 0, redis.call('PTTL', KEYS[2]), 0, 0 }
end
local last = fence_of(redis.call('GET', KEYS[4]))
local next = math.max(now, last + 1, fence + 1, known + 1)
redis.call('SET', KEYS[4], string.format('%.0f', next), 'PX', 86400000)
return { 'ours', failure or '', next, 0, 0, 0 }
