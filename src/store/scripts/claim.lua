-- What there is under a name that is newer than what the caller holds; else the lease, if nobody has it. What makes no sense,
-- whoever left it, counts as nothing.
--
-- KEYS: the record, the lease, the failure, the counter. ARGV: the fence of what the caller holds, the caller, the lease's
-- milliseconds, how many milliseconds a failure is remembered beyond its wait, 1 to ask whatever failed before.
-- Answers { what, value, fence, milliseconds, 1 if the record was made for its fence, microseconds since its fence }; with a
-- failure the last is the time.
local function only(key, kind)
    local found = redis.call('TYPE', key).ok
    if found ~= 'none' and found ~= kind then redis.call('DEL', key) end
end
only(KEYS[1], 'hash')
only(KEYS[2], 'string')
only(KEYS[3], 'string')
only(KEYS[4], 'string')

-- Microseconds, so that it goes on growing even if the store was wiped.
local time = redis.call('TIME')
local now = tonumber(time[1]) * 1000000 + tonumber(time[2])
-- A fence is a whole number, and at most a day ahead of the clock; nothing else can be counted on from.
local function fence_of(text)
    local fence = tonumber(text) or 0
    return fence > 0 and fence < now + 86400000000 and fence == math.floor(fence) and fence or 0
end
local longest_value = 65536

local record = redis.call('HMGET', KEYS[1], 'value', 'fence', 'fresh')
local held, fence = fence_of(ARGV[1]), fence_of(record[2])
local life = redis.call('PTTL', KEYS[1])
if record[1] and #record[1] <= longest_value and life > 0 and fence > held then
    return { 'record', record[1], fence, life, record[3] == '1' and 1 or 0, math.max(0, now - fence) }
end

local remembered = tonumber(ARGV[4])
local failure = redis.call('GET', KEYS[3])
local wait = redis.call('PTTL', KEYS[3]) - remembered
if failure and (#failure > longest_value or wait > remembered) then
    redis.call('DEL', KEYS[3])
    failure = false
end
if failure and ARGV[5] ~= '1' and wait > 0 then return { 'failed', failure, 0, wait, 0, now } end

-- One that does not end by itself, or not soon, is nobody's.
local left = redis.call('PTTL', KEYS[2])
if left == -1 or left > 2 * ARGV[3] then redis.call('DEL', KEYS[2]) end
if not redis.call('SET', KEYS[2], ARGV[2], 'NX', 'PX', ARGV[3]) then
    return { 'taken', '', 0, redis.call('PTTL', KEYS[2]), 0, 0 }
end
local last = fence_of(redis.call('GET', KEYS[4]))
local next = math.max(now, last + 1, fence + 1, held + 1)
redis.call('SET', KEYS[4], string.format('%.0f', next), 'PX', 86400000)
return { 'ours', failure or '', next, 0, 0, 0 }
