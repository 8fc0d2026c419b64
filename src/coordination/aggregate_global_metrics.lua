#!lua flags=allow-oom
-- Adds what an instance did since its last report to what all instances did, keeps the report, and
-- keeps in the hash of the instance how it is now.
--
-- KEYS  1 instance hash  2 active  3 last report of the instance  4 totals  5 totals by event type
-- ARGV  1 id  2 incarnation, or ''  3 how it is now (MessagePack)  4 the process that counts
--       5 how long the report is kept, in ms  6 event types in the totals at most
--       7 what it did  8… an event type and what its handler did, in turn
--       What was done is a MessagePack array: five counters that only rise, and, unless left out,
--       the sum of the times and a map from bucket to count. The caller checked all of it.
-- Returns 1, or 0 if it is not alive or another incarnation: nothing was changed.
-- Cost  O(log n + event types of the report + buckets of those that are not as in the last one).
--       Passes when memory is full: all that it keeps is bounded.
--
-- Counters are sent as they stand, not as differences. So a report that comes twice adds nothing,
-- one that was lost is made up for by the next, and what an instance did is kept when it goes.
-- Another process, or a counter that fell, began at zero.
local id = ARGV[1]
local clock = redis.call('TIME')
local now = clock[1] * 1000 + math.floor(clock[2] / 1000)
local is = redis.call('HMGET', KEYS[1], 'status', 'incarnation')
local expires = tonumber(redis.call('ZSCORE', KEYS[2], id) or 0)
if is[1] ~= 'active' or expires <= now or (ARGV[2] ~= '' and ARGV[2] ~= is[2]) then return 0 end
redis.call('HSET', KEYS[1], 'metrics', ARGV[3], 'reported_at', now)

-- One call for each hash: the server's part of a call costs more than adding a histogram.
local last = KEYS[3]
local names = {'process', ''}
for i = 8, #ARGV, 2 do names[#names + 1] = ARGV[i] end
local before = redis.call('HMGET', last, unpack(names))
if before[1] ~= ARGV[4] then
  redis.call('DEL', last)
  before = {}
end
local changed = {}
for i = 3, #names do
  if before[i] ~= ARGV[2 * i + 3] then changed[#changed + 1] = names[i] end
end
local sums = #changed > 0 and redis.call('HMGET', KEYS[5], unpack(changed)) or {}

-- Numbers are exact up to there; a sum that is larger stays there.
local highest = 2 ^ 53
local function plus(sum, new, old)
  return math.min((sum or 0) + math.max(new - (old or 0), 0), highest)
end

-- The new sum, and what to keep of the report.
local function add(sum, packed, kept)
  local new, old = cmsgpack.unpack(packed), kept and cmsgpack.unpack(kept) or {}
  sum = sum and cmsgpack.unpack(sum) or {0, 0, 0, 0, 0, 0, {}}
  for i = 1, new[7] and 6 or 5 do
    if new[i] < (old[i] or 0) then
      old = {}
      break
    end
  end
  for i = 1, 5 do sum[i] = plus(sum[i], new[i], old[i]) end
  local time, was = old[6] or 0, old[7] or {}
  if new[7] then
    sum[6] = plus(sum[6], new[6], time)
    local counts = sum[7]
    for bucket, count in pairs(new[7]) do
      local more = count - (was[bucket] or 0)
      if more > 0 then
        more = (counts[bucket] or 0) + more
        counts[bucket] = more < highest and more or highest
      end
    end
  else
    new[6], new[7] = time, was
    packed = cmsgpack.pack(new)
  end
  return cmsgpack.pack(sum), packed
end

local keep, write = {'process', ARGV[4]}, {}
if before[2] ~= ARGV[7] then
  local sum, kept = add(redis.call('GET', KEYS[4]), ARGV[7], before[2])
  redis.call('SET', KEYS[4], sum)
  keep[3], keep[4] = '', kept
end
local room = tonumber(ARGV[6]) - redis.call('HLEN', KEYS[5])
local next_changed = 1
for i = 3, #names do
  if names[i] == changed[next_changed] then
    local sum = sums[next_changed]
    next_changed = next_changed + 1
    if not sum then room = room - 1 end
    if sum or room >= 0 then
      local kept
      sum, kept = add(sum, ARGV[2 * i + 3], before[i])
      table.insert(write, names[i])
      table.insert(write, sum)
      table.insert(keep, names[i])
      table.insert(keep, kept)
    end
  end
end
if #write > 0 then redis.call('HSET', KEYS[5], unpack(write)) end
redis.call('HSET', last, unpack(keep))
redis.call('PEXPIRE', last, ARGV[5])
return 1
