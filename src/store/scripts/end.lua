-- Ends a lease that brought no record. With a failure, the others leave it alone for as long.
--
-- KEYS: the lease, the failure. ARGV: the caller, the channel, the news, the failure, its milliseconds (0: there is none).
-- Answers 1, or 0 if the lease was not the caller's any more.
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end
redis.call('DEL', KEYS[1])
if ARGV[5] ~= '0' then redis.call('SET', KEYS[2], ARGV[4], 'PX', ARGV[5]) end
redis.call('PUBLISH', ARGV[2], ARGV[3])
return 1
