#!lua flags=allow-oom
-- Gives a worker seats of a type: all workers share them, and as many runs of the type go on as there are seats.
--
-- A worker says how many seats it needs for what goes on there, and not that it took one or gave one back: said again,
-- or after a lost answer, it is right. Its share is the seats by the workers that need some, rounded down, and at least
-- one. Who asks first gets what is free; it is kept for those that have waited for some turns longer. Who has more than
-- its share gives back what others need. Where there are fewer seats than workers, a seat is given back after a turn.
-- Where more runs go on than there are seats, nobody keeps any: the next one begins after a call that saw fewer.
--
-- KEYS  1 the type's seats: a hash by worker, which expires with the last lease. A value is whole numbers with a space
--         between two, in ms where they are times: the end of its lease, the lease, the number of its last call, the
--         seats that it has, how many more it waits for, since when, until when it asks again, since when it has some
-- ARGV  1 the worker, with its process  2 the number of this call: it rises  3 the lease (ms)  4 seats of the type
--       5 seats that it needs for what goes on  6 how many more it could use
-- Returns how many more it has now, how many it is to keep at the most, a time (ms), and 1 if others wait that get none.
--   The time is when it is to ask again, if it waits or others do; else for how long it may keep what nobody uses there.
--   Nothing if a later call was here before.
-- Cost  O(w): the workers that asked within a lease. All times grow with them, so that those that wait ask together
--   some hundred times a second at the most.
--
-- A call can be repeated: what the last one answers holds. It must pass when memory is full, or nothing of the type
-- would begin just then, and what ended would count: what it adds is smaller than the events that run.
local SOON, LATE = 40, 500 -- the pauses of who is first in line, and the longest
local SLACK = 250          -- how late a worker may ask again and is still in line
local TURN = 500           -- how long a worker has its seat while others have none
local IDLE = 50            -- how long a seat is kept that nobody uses, where few are free
local MANY = 25            -- workers from which these times grow with them
local LONG = 8             -- turns from which a wait is as long as any
local DAY = 86400000       -- no lease is longer
local GONE = 64            -- values of others that one call takes away, or mends
local key, me, call, lease = KEYS[1], ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3])
local total, has, wants = tonumber(ARGV[4]), tonumber(ARGV[5]), tonumber(ARGV[6])
local clock = redis.call('TIME')
local now = clock[1] * 1000 + math.floor(clock[2] / 1000)

local function read(text)
  if #text > 160 then return nil end
  local part = {string.match(text, '^(%d+) (%d+) (%d+) (%d+) (%d+) (%d+) (%d+) (%d+)$')}
  for i = 1, 8 do
    part[i] = tonumber(part[i])
    if not part[i] or part[i] >= 2 ^ 53 then return nil end
  end
  if part[2] > DAY then return nil end
  return { till = part[1], lease = part[2], call = part[3], has = part[4],
    wants = part[5], since = part[6], again = part[7], got = part[8] }
end

local function written(one)
  return string.format('%.0f %.0f %.0f %.0f %.0f %.0f %.0f %.0f',
    one.till, one.lease, one.call, one.has, one.wants, one.since, one.again, one.got)
end

local flat = redis.pcall('HGETALL', key)
if flat.err then
  -- Somebody wrote something else there.
  redis.call('DEL', key)
  flat = {}
end
local others, own, gone, mended = {}, nil, {}, {}
local taken, workers = 0, (has + wants > 0) and 1 or 0
for i = 1, #flat, 2 do
  local one = read(flat[i + 1])
  if flat[i] == me then
    own = one
  elseif not one or one.till <= now then
    if #gone < GONE then gone[#gone + 1] = flat[i] end
  else
    one.name = flat[i]
    if one.till > now + one.lease then
      -- The clock went back. Whoever lives says so again before that.
      one.till = now + one.lease
      if #mended < 2 * GONE then
        mended[#mended + 1] = one.name
        mended[#mended + 1] = written(one)
      end
    end
    if one.again <= now or one.again > one.till or one.since > now then one.wants = 0 end
    if one.has + one.wants > 0 then workers = workers + 1 end
    taken = taken + one.has
    others[#others + 1] = one
  end
end
if own and own.call > call then return {} end
if #gone > 0 then redis.call('HDEL', key, unpack(gone)) end
if #mended > 0 then redis.call('HSET', key, unpack(mended)) end

local slow = math.max(1, workers / MANY)
local turn = TURN * slow
local each = math.floor(total / math.max(workers, 1))
local share = math.max(each, 1)
local free = total - taken - has
local since = now
if own and own.wants > 0 and own.since <= now and own.has <= has then since = own.since end

-- Whoever asks first gets what is free, unless others have waited for some turns longer: it is kept for those.
local function turns(waits_since) return math.min(math.floor((now - waits_since) / turn), LONG) end
local is_short = has < share
local own_turns = turns(since)
-- Who had its turn is the last.
if own and own.has > has and wants > 0 then own_turns = -1 end
-- What those need that have less than their share; what of that is kept from this one. How many wait for longer.
local short, kept, before, waiting = 0, 0, 0, 0
for _, one in ipairs(others) do
  if one.wants > 0 then
    waiting = waiting + one.wants
    local is_before = one.since < since or (one.since == since and one.name < me)
    if one.has < share then
      local needs = math.min(one.wants, share - one.has)
      short = short + needs
      if not is_short or turns(one.since) > own_turns then kept = kept + needs end
      if is_before or not is_short then before = before + 1 end
    elseif is_before and not is_short then
      before = before + 1
    end
  end
end

local gets = math.min(wants, free - kept)
if is_short then gets = math.min(gets, math.max(share - has, free - short)) end
-- The same call once more, which got that.
if own and own.call == call and own.till > now then gets = math.max(gets, math.min(wants, own.has - has)) end
gets = math.max(gets, 0)
wants = wants - gets
local had_some = own and own.has > 0 and own.got <= now and has > 0
has, free = has + gets, free - gets
if gets > 0 then since = now end
local got = had_some and own.got or now

local keep = has
if free < 0 then
  -- More go on than may; others may not have said yet what goes on with them.
  keep = 0
elseif short > free then
  keep = math.max(has - (short - free), math.min(has, share))
  if each == 0 and has == 1 and now - got >= turn then keep = 0 end
end

local again
if wants > 0 then
  again = math.min(SOON * (before + 1), LATE) * slow
elseif waiting > free then
  again = turn
else
  again = (free >= workers and TURN or IDLE) * slow
end
if has > 0 then again = math.min(again, lease / 4) end
again = math.floor(again)
-- Also where it needs none: a call that comes late must not take any for it.
local stays = (has == 0 and wants > 0) and math.max(lease, again + SLACK) or lease
redis.call('HSET', key, me, written({ till = now + stays, lease = stays, call = call, has = has, wants = wants,
  since = since, again = now + again + SLACK, got = got }))
if redis.call('PTTL', key) < stays then redis.call('PEXPIRE', key, stays) end
return { gets, keep, again, waiting > free and 1 or 0 }
