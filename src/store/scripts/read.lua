-- Returns the record of a name, if it is valid. KEYS: record. Returns { value, fence, milliseconds, 1 if the
-- value was fetched under its lease, microseconds since its fence }; an empty value for none.
local none = { '', 0, 0, 0, 0 }
if redis.call('TYPE', KEYS[1]).ok ~= 'hash' then return none end
local record = redis.call('HMGET', KEYS[1], 'value', 'fence', 'fresh')
local time = redis.call('TIME')
local now = tonumber(time[1]) * 1000000 + tonumber(time[2])
local fence, life = tonumber(record[2]) or 0, redis.call('PTTL', KEYS[1])
-- As in claim.lua.
local is_fence = fence > 0 and fence < now + 86400000000 and fence == math.floor(fence)
if not (record[1] and #record[1] <= 65536 and life > 0 and is_fence) then return none end
return { record[1], fence, life, record[3] == '1' and 1 or 0, math.max(0, now - fence) }
