-- Returns a record, or nil. KEYS: records. ARGV: field.
return redis.call('HGET', KEYS[1], ARGV[1])
