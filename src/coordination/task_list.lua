#!lua flags=no-writes
-- Lists tasks and counts them, at one moment.
--
-- KEYS  1 records  2 held  3 queue  4 done  5 counts
-- ARGV  1 a status, or '' for all  2 the most tasks  3 of the finished: begin behind this one, or ''
--       4 the most finished tasks that are looked at
-- Returns {{pending, assigned, completed, failed, cancelled}, {id, record, …}, after}: the assigned, by
--       instance; those that wait, in their order; the finished, the last one first. after: call again
--       with it for more of the finished, which do not move; '' if there are no more.
-- Cost  O(log n + tasks listed + finished ones looked at).
local status, most, after, within = ARGV[1], tonumber(ARGV[2]), ARGV[3], tonumber(ARGV[4])
local listed = {}

-- Those of the members whose records have that in them; a record that somebody deleted is left out.
local function add(members, wanted)
  if #members == 0 then return end
  for i, member in ipairs(members) do members[i] = string.match(member, '(%S+)$') end
  for i, record in ipairs(redis.call('HMGET', KEYS[1], unpack(members))) do
    if #listed == 2 * most then return end
    if record and (not wanted or string.find(record, wanted, 1, true)) then
      listed[#listed + 1] = members[i]
      listed[#listed + 1] = record
    end
  end
end

local function left()
  return most - #listed / 2
end

local counts = redis.call('HMGET', KEYS[5], 'completed', 'failed', 'cancelled')
local total = { redis.call('ZCARD', KEYS[3]), redis.call('ZCARD', KEYS[2]) }
for i = 1, 3 do total[i + 2] = tonumber(counts[i] or 0) end

if after == '' then
  if (status == '' or status == 'assigned') and left() > 0 then
    add(redis.call('ZRANGE', KEYS[2], 0, left() - 1))
  end
  if (status == '' or status == 'pending') and left() > 0 then
    add(redis.call('ZRANGE', KEYS[3], 0, left() - 1))
  end
end
local finished = status ~= 'assigned' and status ~= 'pending'
local from = 0
if after ~= '' then
  local at = redis.call('ZSCORE', KEYS[4], after)
  -- One that is not there any more was the oldest: so were all behind it.
  if not at then return { total, listed, '' } end
  from = redis.call('ZCOUNT', KEYS[4], '(' .. at, '+inf')
  for _, id in ipairs(redis.call('ZRANGE', KEYS[4], at, at, 'BYSCORE', 'REV')) do
    from = from + 1
    if id == after then break end
  end
end
if not finished or left() == 0 then return { total, listed, '' } end
local page = redis.call('ZRANGE', KEYS[4], from, from + within - 1, 'REV')
local full = #page == within and page[#page]
-- As it stands in a record. To unpack many takes long; no text that is UTF-8 has these bytes in it.
local pack = cmsgpack.pack
add(page, status ~= '' and pack('status') .. pack(status))
return { total, listed, full and left() > 0 and full or '' }
