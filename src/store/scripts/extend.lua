-- Makes a lease last longer. KEYS: the lease. ARGV: the caller, milliseconds. Answers 1, or 0 if it is not the caller's.
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end
return redis.call('PEXPIRE', KEYS[1], ARGV[2])
