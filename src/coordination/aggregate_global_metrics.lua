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
-- Cost  O(log n + counters and buckets that are not as in the last report). Passes when memory is
--       full: all that it keeps is bounded.
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
local last = KEYS[3]
if redis.call('HGET', last, 'process') ~= ARGV[4] then
  redis.call('DEL', last)
  redis.call('HSET', last, 'process', ARGV[4])
end

local function raise(key, field, by)
  -- A sum that is too large for the server stays where it is.
  if by > 0 then redis.pcall('HINCRBY', key, field, string.format('%.0f', by)) end
end

local function add(key, prefix, field, packed)
  local before = redis.call('HGET', last, field)
  if before == packed then return end
  local new, old = cmsgpack.unpack(packed), before and cmsgpack.unpack(before) or {}
  for i = 1, new[7] and 6 or 5 do
    if new[i] < (old[i] or 0) then
      old = {}
      break
    end
  end
  for i = 1, 5 do raise(key, prefix .. 'c' .. i, new[i] - (old[i] or 0)) end
  local sum, was = old[6] or 0, old[7] or {}
  if new[7] then
    raise(key, prefix .. 'c6', new[6] - sum)
    for bucket, count in pairs(new[7]) do
      raise(key, prefix .. bucket, count - (was[bucket] or 0))
    end
  else
    new[6], new[7] = sum, was
    packed = cmsgpack.pack(new)
  end
  redis.call('HSET', last, field, packed)
end

add(KEYS[4], '', '', ARGV[7])
for i = 8, #ARGV, 2 do
  local kind = ARGV[i]
  local known = redis.call('HEXISTS', KEYS[5], kind) == 1
  -- One field of each type counts it.
  if not known and tonumber(redis.call('HGET', KEYS[5], 'types') or 0) < tonumber(ARGV[6]) then
    redis.call('HSET', KEYS[5], kind, 1)
    redis.call('HINCRBY', KEYS[5], 'types', 1)
    known = true
  end
  if known then add(KEYS[5], kind .. ' ', kind, ARGV[i + 1]) end
end
redis.call('PEXPIRE', last, ARGV[5])
return 1
