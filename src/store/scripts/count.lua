-- Takes from buckets that are refilled evenly. A bucket is the moment when it is full, in microseconds since 1970; one that
-- is full has no key.
--
-- KEYS: the buckets. ARGV: how many microseconds ago the first was taken at most, then for each bucket how many microseconds
-- what was taken takes to refill.
-- Answers for each bucket in how many microseconds it is full.
local time = redis.call('TIME')
local now = tonumber(time[1]) * 1000000 + tonumber(time[2])
local since = tonumber(ARGV[1])
local answers = {}
for nth, key in ipairs(KEYS) do
    local found = redis.call('TYPE', key).ok
    if found ~= 'none' and found ~= 'string' then redis.call('DEL', key) end
    local taken = tonumber(ARGV[nth + 1])
    local full_at = math.max(tonumber(redis.call('GET', key)) or 0, now - since) + taken
    if taken > 0 then
        local life = math.max(1, math.ceil((full_at - now + since) / 1000))
        redis.call('SET', key, string.format('%.0f', full_at), 'PX', string.format('%.0f', life))
    end
    answers[nth] = full_at - now
end
return answers
