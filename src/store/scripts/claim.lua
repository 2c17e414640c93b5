-- What there is under a name that is newer than what the caller holds; else the lease, if nobody has it.
--
-- KEYS: the record, the lease, the failure, the counter. ARGV: the fence of what the caller holds, the caller, the lease's
-- milliseconds, how many milliseconds a failure is remembered beyond its wait, 1 to ask whatever failed before.
-- Answers { what, value, fence, milliseconds, 1 if the record was made for its fence }.
local function only(key, kind)
    local found = redis.call('TYPE', key).ok
    if found ~= 'none' and found ~= kind then redis.call('DEL', key) end
end
only(KEYS[1], 'hash')
only(KEYS[2], 'string')
only(KEYS[3], 'string')
only(KEYS[4], 'string')

local record = redis.call('HMGET', KEYS[1], 'value', 'fence', 'fresh')
local fence = tonumber(record[2]) or 0
local life = redis.call('PTTL', KEYS[1])
if record[1] and life > 0 and fence > tonumber(ARGV[1]) then
    return { 'record', record[1], fence, life, record[3] == '1' and 1 or 0 }
end

local failure = redis.call('GET', KEYS[3])
if failure and ARGV[5] ~= '1' then
    local wait = redis.call('PTTL', KEYS[3]) - tonumber(ARGV[4])
    if wait > 0 then return { 'failed', failure, 0, wait, 0 } end
end

if not redis.call('SET', KEYS[2], ARGV[2], 'NX', 'PX', ARGV[3]) then
    return { 'taken', '', 0, redis.call('PTTL', KEYS[2]), 0 }
end
-- Microseconds, so that it goes on growing even if the store was wiped.
local time = redis.call('TIME')
local now = tonumber(time[1]) * 1000000 + tonumber(time[2])
local last = tonumber(redis.call('GET', KEYS[4])) or 0
local next = math.max(now, last + 1, fence + 1)
redis.call('SET', KEYS[4], string.format('%.0f', next), 'PX', 86400000)
return { 'ours', failure or '', next, 0, 0 }
