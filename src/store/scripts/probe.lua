-- Runs the commands of the other scripts once, so that a server that refuses one of them is detected on
-- connecting.
--
-- KEYS: a hash, a string. ARGV: the channel, milliseconds. Returns 1, or the first error with the name of its
-- command, which servers do not include in every error.
local refused
local function try(...)
    if refused then return end
    local reply = redis.pcall(...)
    if type(reply) == 'table' and reply.err then refused = string.format("%s ('%s')", reply.err, (...)) end
    return reply
end

try('time')
for nth, kind in ipairs({ 'hash', 'string' }) do
    local found = (try('type', KEYS[nth]) or {}).ok
    if found ~= kind and found ~= 'none' then try('del', KEYS[nth]) end
end
-- HSET is the first write: a full server refuses writes only.
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
