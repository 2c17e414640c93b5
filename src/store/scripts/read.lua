-- The record of a name, if there is one. KEYS: the record. Answers { value, fence, milliseconds }, an empty value for none.
if redis.call('TYPE', KEYS[1]).ok ~= 'hash' then return { '', 0, 0 } end
local record = redis.call('HMGET', KEYS[1], 'value', 'fence')
return { record[1] or '', tonumber(record[2]) or 0, redis.call('PTTL', KEYS[1]) }
