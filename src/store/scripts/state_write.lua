-- Carries out transactions of the state: each all or not at all. Versions are microseconds or a little more, so that
-- they grow even after the store was wiped.
--
-- KEYS: records (hash), changes (sorted by version), names, ends (sorted by time), version, order (fields with the
-- version behind their last slash). ARGV: seconds since 1970, end of the marks of deletions; then for each transaction
-- the number of its writes, and for each write field, index (1: followed, 2: in order), precondition (none, absent,
-- present, a version, or not-last: and a version), sealed value (empty: delete), end (or empty).
-- Returns for each transaction its version, or '' with the index of the failed write and its version (or '').
local now, mark_end = tonumber(ARGV[1]), ARGV[2]
local time = redis.call('TIME')
local newest = tonumber(redis.call('GET', KEYS[5]) or '0') or 0

local function order_member(field, version)
    local prefix, id = string.match(field, '^(.*/)([^/]*)$')
    return (prefix or '') .. string.format('%016.0f', tonumber(version)) .. (id or field)
end

-- The version of a record that is neither deleted nor expired.
local function version_of(field)
    local packed = redis.call('HGET', KEYS[1], field)
    local version, ends, value = string.match(packed or '', '^(%d+):(%d*):()')
    if not version or #packed < value then return nil end
    if ends ~= '' and tonumber(ends) <= now then return nil end
    return version
end

-- Whether the collection of a field has another record; records of such a collection do not expire.
local function has_other(field)
    local prefix = string.match(field, '^[^:]*:')
    for _, other in ipairs(redis.call('ZRANGEBYLEX', KEYS[3], '[' .. prefix, '[' .. prefix .. '\255', 'LIMIT', 0, 2)) do
        if other ~= field then return true end
    end
    return false
end

local function failed_write(at, writes)
    for nth = 0, writes - 1 do
        local found, condition = version_of(ARGV[at + 5 * nth]), ARGV[at + 5 * nth + 2]
        local holds = condition == 'none' or (condition == 'absent' and not found)
            or (condition == 'present' and found) or condition == found
            or (found and condition == 'not-last:' .. found and has_other(ARGV[at + 5 * nth]))
        if not holds then return nth, found or '' end
    end
end

-- Takes the record that there is, if any, out of the order.
local function leave_order(field)
    local version = string.match(redis.call('HGET', KEYS[1], field) or '', '^(%d+):')
    if version then redis.call('ZREM', KEYS[6], order_member(field, version)) end
end

local function put(field, index, packed, ends, version)
    if index == '2' then
        leave_order(field)
        redis.call('ZADD', KEYS[6], 0, order_member(field, version))
    end
    redis.call('HSET', KEYS[1], field, packed)
    if index == '1' then redis.call('ZADD', KEYS[2], version, field) end
    if ends == '' then redis.call('ZREM', KEYS[4], field) else redis.call('ZADD', KEYS[4], ends, field) end
end

local function write(at, version)
    local field, index, value, ends = ARGV[at], ARGV[at + 1], ARGV[at + 3], ARGV[at + 4]
    if value ~= '' then
        put(field, index, version .. ':' .. ends .. ':' .. value, ends, version)
        redis.call('ZADD', KEYS[3], 0, field)
        return
    end
    redis.call('ZREM', KEYS[3], field)
    if index ~= '1' then
        if index == '2' then leave_order(field) end
        redis.call('HDEL', KEYS[1], field)
        redis.call('ZREM', KEYS[4], field)
    elseif redis.call('HEXISTS', KEYS[1], field) == 1 then
        put(field, index, version .. ':' .. mark_end .. ':', mark_end, version)
    end
end

local reply, at = {}, 3
while at <= #ARGV do
    local writes = tonumber(ARGV[at])
    local index, current = failed_write(at + 1, writes)
    if index then
        reply[#reply + 1] = { '', tostring(index), current }
    else
        newest = math.max(newest + 1, tonumber(time[1]) * 1000000 + tonumber(time[2]))
        local version = string.format('%.0f', newest)
        redis.call('SET', KEYS[5], version)
        for nth = 0, writes - 1 do write(at + 1 + 5 * nth, version) end
        reply[#reply + 1] = { version, '0', '' }
    end
    at = at + 1 + 5 * writes
end
return reply
