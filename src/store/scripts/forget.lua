-- Deletes the record, the lease and the failure of a name. The counter stays: later fences are greater.
--
-- KEYS: record, lease, failure. Returns how many there were.
return redis.call('DEL', KEYS[1], KEYS[2], KEYS[3])
