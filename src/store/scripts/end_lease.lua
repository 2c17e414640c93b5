-- Ends a lease without a record. With a failure, no replica tries before its backoff has ended.
--
-- KEYS: lease, failure. ARGV: the lease owner, the channel, the notification, the failure, its TTL in
-- milliseconds (0: no failure). Returns 1, or 0 if the lease is no longer the owner's.
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end
redis.call('DEL', KEYS[1])
if ARGV[5] ~= '0' then redis.call('SET', KEYS[2], ARGV[4], 'PX', ARGV[5]) end
redis.call('PUBLISH', ARGV[2], ARGV[3])
return 1
