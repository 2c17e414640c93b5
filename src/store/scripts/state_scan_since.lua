-- Returns fields and records in turn, written after a version, in the order of versions, without expired ones.
--
-- KEYS: records, order. ARGV: seconds since 1970, the fields up to their last slash, version, how many records at most,
-- how many bytes about.
local now, prefix, limit, max_bytes = tonumber(ARGV[1]), ARGV[2], tonumber(ARGV[4]), tonumber(ARGV[5])
-- No text in UTF-8 has this byte.
local first = '(' .. prefix .. string.format('%016.0f', tonumber(ARGV[3])) .. '\255'
local reply, bytes = {}, 0
while true do
    local members = redis.call('ZRANGEBYLEX', KEYS[2], first, '[' .. prefix .. '\255', 'LIMIT', 0, limit)
    for _, member in ipairs(members) do
        local field = prefix .. string.sub(member, #prefix + 17)
        local packed = redis.call('HGET', KEYS[1], field)
        local ends, value = string.match(packed or '', '^%d+:(%d*):()')
        if ends and #packed >= value and (ends == '' or tonumber(ends) > now) then
            reply[#reply + 1] = field
            reply[#reply + 1] = packed
            bytes = bytes + #packed
            if #reply >= 2 * limit or bytes >= max_bytes then return reply end
        end
    end
    if #members < limit then return reply end
    first = '(' .. members[#members]
end
