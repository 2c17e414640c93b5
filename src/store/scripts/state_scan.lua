-- Returns the field behind which there may be more records, or '', then fields and records in turn, in the order of
-- fields, without deleted and expired ones.
--
-- KEYS: records, names. ARGV: seconds since 1970, first and last field as ZRANGEBYLEX writes them, how many records at
-- most, how many bytes about.
local now, first, limit, max_bytes = tonumber(ARGV[1]), ARGV[2], tonumber(ARGV[4]), tonumber(ARGV[5])
local reply, bytes = { '' }, 0
while true do
    local fields = redis.call('ZRANGEBYLEX', KEYS[2], first, ARGV[3], 'LIMIT', 0, limit)
    for _, field in ipairs(fields) do
        local packed = redis.call('HGET', KEYS[1], field)
        local ends, value = string.match(packed or '', '^%d+:(%d*):()')
        if ends and #packed >= value and (ends == '' or tonumber(ends) > now) then
            reply[#reply + 1] = field
            reply[#reply + 1] = packed
            bytes = bytes + #packed
            if #reply > 2 * limit or bytes >= max_bytes then
                reply[1] = field
                return reply
            end
        end
    end
    if #fields < limit then return reply end
    first = '(' .. fields[#fields]
end
