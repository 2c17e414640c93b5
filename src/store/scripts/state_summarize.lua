-- Returns how many names there are from the first to the last, and the smallest suffix of the first 1,000 of them.
--
-- KEYS: names. ARGV: first and last field as ZRANGEBYLEX writes them, length of the suffix.
local smallest = ''
for _, field in ipairs(redis.call('ZRANGEBYLEX', KEYS[1], ARGV[1], ARGV[2], 'LIMIT', 0, 1000)) do
    local suffix = string.sub(field, -tonumber(ARGV[3]))
    if smallest == '' or suffix < smallest then smallest = suffix end
end
return { redis.call('ZLEXCOUNT', KEYS[1], ARGV[1], ARGV[2]), smallest }
