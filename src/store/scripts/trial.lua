-- Does once what the other scripts do, so that a store which refuses some of it is known before it is relied upon.
--
-- KEYS: a hash, a text. ARGV: the channel, milliseconds.
-- Answers 1, or the first error with its command's name, which a server does not say of all errors.
local refused
local function try(...)
    if refused then return end
    local answer = redis.pcall(...)
    if type(answer) == 'table' and answer.err then refused = string.format("%s ('%s')", answer.err, (...)) end
    return answer
end

try('time')
for nth, kind in ipairs({ 'hash', 'string' }) do
    local found = (try('type', KEYS[nth]) or {}).ok
    if found ~= kind and found ~= 'none' then try('del', KEYS[nth]) end
end
-- First of what writes: a server that is full refuses no more than that.
try('hset', KEYS[1], 'fence', 0)
try('pexpire', KEYS[1], ARGV[2])
try('hget', KEYS[1], 'fence')
try('hmget', KEYS[1], 'fence')
try('set', KEYS[2], 1, 'PX', ARGV[2])
try('get', KEYS[2])
try('pttl', KEYS[2])
try('publish', ARGV[1], '')
try('del', KEYS[1], KEYS[2])
return refused and redis.error_reply(refused) or 1
