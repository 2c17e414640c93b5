-- Counts calls against quotas. A quota is a hash: number of a bucket of time, and the calls in it.
--
-- KEYS: the quotas. ARGV: for each the milliseconds of a bucket, how many buckets after its own a call counts, the
-- milliseconds by which buckets begin before the epoch, the calls to add. Returns for each the calls that count.
local time = redis.call('TIME')
local now = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)

local results = {}
for nth, key in ipairs(KEYS) do
    local at = 4 * (nth - 1)
    local width, life = tonumber(ARGV[at + 1]), tonumber(ARGV[at + 2])
    local current = math.floor((now + tonumber(ARGV[at + 3])) / width)
    local calls = tonumber(ARGV[at + 4])
    local found = redis.call('TYPE', key).ok
    if found ~= 'none' and found ~= 'hash' then redis.call('DEL', key) end
    if calls > 0 then
        redis.call('HINCRBY', key, string.format('%.0f', current), string.format('%.0f', calls))
        redis.call('PEXPIRE', key, string.format('%.0f', width * (life + 1)))
    end
    local total, fields = 0, redis.call('HGETALL', key)
    for field = 1, #fields, 2 do
        local bucket = tonumber(fields[field])
        if bucket and bucket + life >= current and bucket <= current then
            total = total + (tonumber(fields[field + 1]) or 0)
        else
            redis.call('HDEL', key, fields[field])
        end
    end
    results[nth] = total
end
return results
