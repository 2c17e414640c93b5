-- Takes from buckets that are refilled evenly. A bucket is the moment when it is full and the moment when that was written,
-- FULL@WRITTEN in microseconds since 1970; one that is full has no key.
--
-- KEYS: the buckets. ARGV: how many microseconds ago the first was taken at most, then for each bucket how many microseconds
-- what was taken takes to refill.
-- Answers for each bucket in how many microseconds it is full.
local time = redis.call('TIME')
local now = tonumber(time[1]) * 1000000 + tonumber(time[2])
local since = tonumber(ARGV[1])
-- No limit is for more than an hour, and no hundred replicas take all of it at once.
local longest = 100 * 3600 * 1000000

-- In how many microseconds it is full: of a clock that went back since, or another server's, only what it said then counts.
local function ahead(text)
    local full, written = string.match(text or '', '^(%d+)@(%d+)$')
    if not written then return -since end
    local ahead = tonumber(full) - math.max(now, tonumber(written))
    return ahead < longest and math.max(ahead, -since) or -since
end

local answers = {}
for nth, key in ipairs(KEYS) do
    local found = redis.call('TYPE', key).ok
    if found ~= 'none' and found ~= 'string' then redis.call('DEL', key) end
    local taken = tonumber(ARGV[nth + 1])
    local full_in = ahead(redis.call('GET', key)) + taken
    if taken > 0 then
        local life = math.max(1, math.ceil((full_in + since) / 1000))
        redis.call('SET', key, string.format('%.0f@%.0f', now + full_in, now), 'PX', string.format('%.0f', life))
    end
    answers[nth] = full_in
end
return answers
