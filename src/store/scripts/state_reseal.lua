-- Replaces a record by the same one under another key, unless it changed meanwhile. Returns 1 where it did not.
--
-- KEYS: records. ARGV: field, the record before, the record after.
if redis.call('HGET', KEYS[1], ARGV[1]) ~= ARGV[2] then return 0 end
redis.call('HSET', KEYS[1], ARGV[1], ARGV[3])
return 1
