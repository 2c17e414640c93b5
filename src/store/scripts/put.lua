-- Replaces an older record, ends the lease and publishes the notification. A caller whose lease expired is too
-- late if a record with a later fence exists.
--
-- KEYS: record, lease, failure. ARGV: the fence, the value, its TTL in milliseconds, the lease owner, the
-- channel, the notification, 1 if the value was fetched under this lease. Returns 1, or 0 if a newer record
-- exists.
if redis.call('TYPE', KEYS[1]).ok ~= 'hash' then redis.call('DEL', KEYS[1]) end
local ours = redis.call('GET', KEYS[2]) == ARGV[4]
if ours then redis.call('DEL', KEYS[2]) end
local time = redis.call('TIME')
local now = tonumber(time[1]) * 1000000 + tonumber(time[2])
local fence = tonumber(redis.call('HGET', KEYS[1], 'fence')) or 0
-- As in claim.lua.
local is_fence = fence > 0 and fence < now + 86400000000 and fence == math.floor(fence)
if is_fence and fence >= tonumber(ARGV[1]) then return 0 end
redis.call('HSET', KEYS[1], 'value', ARGV[2], 'fence', ARGV[1], 'fresh', ARGV[7])
redis.call('PEXPIRE', KEYS[1], ARGV[3])
redis.call('DEL', KEYS[3])
redis.call('PUBLISH', ARGV[5], ARGV[6])
return 1
