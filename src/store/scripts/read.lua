-- The record of a name, if there is one. KEYS: the record. Answers { value, fence, milliseconds, 1 if it was made for
-- its fence }, an empty value for none.
if redis.call('TYPE', KEYS[1]).ok ~= 'hash' then return { '', 0, 0, 0 } end
local record = redis.call('HMGET', KEYS[1], 'value', 'fence', 'fresh')
return { record[1] or '', tonumber(record[2]) or 0, redis.call('PTTL', KEYS[1]), record[3] == '1' and 1 or 0 }
