-- Deletes expired records and old marks of deletions; followed records get such a mark first. Returns how many.
--
-- KEYS: records, changes, names, ends, version, order. ARGV: seconds since 1970, end of the marks, how many records at most.
local fields = redis.call('ZRANGEBYSCORE', KEYS[4], '-inf', ARGV[1], 'LIMIT', 0, ARGV[3])
for _, field in ipairs(fields) do
    local packed = redis.call('HGET', KEYS[1], field)
    local value = string.match(packed or '', '^%d+:%d*:()')
    redis.call('ZREM', KEYS[3], field)
    if value and #packed >= value and redis.call('ZSCORE', KEYS[2], field) then
        local version = string.format('%.0f', tonumber(redis.call('INCR', KEYS[5])))
        redis.call('HSET', KEYS[1], field, version .. ':' .. ARGV[2] .. ':')
        redis.call('ZADD', KEYS[2], version, field)
        redis.call('ZADD', KEYS[4], ARGV[2], field)
    else
        local prefix, id = string.match(field, '^(.*/)([^/]*)$')
        local written = string.match(packed or '', '^(%d+):')
        if prefix and written then
            redis.call('ZREM', KEYS[6], prefix .. string.format('%016.0f', tonumber(written)) .. id)
        end
        redis.call('HDEL', KEYS[1], field)
        redis.call('ZREM', KEYS[2], field)
        redis.call('ZREM', KEYS[4], field)
    end
end
return #fields
