-- Gives a batch to one holder at a time, each with a higher fence than the one before, and commits
-- what the holder finished, in one step with the facts. The step that commits the last item also
-- completes the batch, so there is nothing between the two.
--
-- acquire   the caller holds the batch if it is new, if the lease has run out or was given back, or
--           if the holder worked on an earlier delivery of the very entry that the caller has now: the
--           bus took it over, so nothing that the holder still does can be committed. Whoever has an
--           earlier delivery than the last holder's waits for one lease more.
-- A batch that is nobody's is gone on with by whoever has its event, or anyone if nobody was at it for a lease. All
-- of them have the same fence, which then only says which batch it is: each item is marked once, whoever does it.
--
-- progress  marks items as finished; nothing with another fence than the last.
--
-- KEYS  1 the batch: a hash  2 its finished items: a bitmap  3 the batches by their last change
--       4 broadcast  5 the version of the state  6… progress: the stream of each publication
-- ARGV  1 'acquire'  2 batch id  3 how long a completed batch is kept, in ms  4 item type  5 mode
--       6 digest of the content  7 number of items  8 instance  9 the run: a unique word  10 entry id
--       11 event id  12 lease in ms  13 1 if the caller may hold it, 0 if it only asks  14 how long a
--       batch is kept that nobody goes on with, in ms  15 batches that are listed at the most
--       16 which delivery of the entry  17 since when silence counts, 18 from when and 19 until when the
--       call may be run, in ms (see `silence.rs`); else silence counts from now on
--       20 a word that nobody can guess; the batch keeps its first one  21 1 if a new batch is nobody's
-- ARGV  1 'progress'  2 batch id  3 as above  4 fence  5 ms from one batch.progress to the next
--       6 failures that are recorded at the most  7 how long a batch is kept that nobody goes on with
--       8 number of items; for each its index, '' or the error code, the message; then for each
--       publication the number of its words, the words
-- Returns {state, fence, processor, processed, failed, total, ms left of the lease, event, bitmap}
--       acquire:  held (the caller holds it), shared (it is nobody's, and the caller goes on with it); only
--                 these two with the bitmap; busy (another one does),
--                 free (it could be held), completed, cancelled (by whom and why in the place of the bitmap),
--                 differs (it has another content)
--       progress: held, completed, lost (the fence is not the last one's, or it was given back), unwritable (the key in
--                 the place of the bitmap holds no stream); nothing was changed by the last two
--       A call that is repeated changes nothing.
-- Cost  O(log n) for n batches, and O(items + publications) for progress; acquire reads the bitmap,
--       total/8 bytes.
local batch, finished, batches, broadcast = unpack(KEYS, 1, 4)
local action, id, kept = unpack(ARGV, 1, 3)
local clock = redis.call('TIME')
local now = clock[1] * 1000 + math.floor(clock[2] / 1000)

local is = {}
local fields = {'digest', 'status', 'fence', 'processor', 'run', 'entry', 'event', 'delivery', 'expires',
  'processed', 'failed', 'total', 'told', 'lease_ms', 'word', 'shared', 'by', 'reason'}
for at, value in ipairs(redis.call('HMGET', batch, unpack(fields))) do is[fields[at]] = value end

local function answer(state, last)
  local left = math.max(0, tonumber(is.expires or 0) - now)
  return {state, is.fence or '0', is.processor or '', is.processed or '0', is.failed or '0',
    is.total or '0', left, is.event or '', last or ''}
end

-- What was recorded of the items that failed, in no order, as much of it as fits into 32 KiB.
local function failures()
  local found, bytes = {}, 0
  local record = redis.call('HGETALL', batch)
  for at = 1, #record, 2 do
    local index = string.match(record[at], '^failure:(%d+)$')
    local code, message = string.match(record[at + 1], '^(%S+) (.*)$')
    if index and code then
      bytes = bytes + #record[at + 1]
      if bytes > 32 * 1024 then break end
      found[#found + 1] = { index = tonumber(index), code = code, message = message }
    end
  end
  return found
end

local function tell(kind, failed)
  is.told = now
  redis.call('ZADD', batches, now, id)
  redis.call('XADD', broadcast, '*', 'type', kind, 'time', now, 'data', cmsgpack.pack({
    batch_id = id, processor_id = is.processor, items_processed = tonumber(is.processed),
    items_failed = tonumber(is.failed), total = tonumber(is.total), fence = tonumber(is.fence),
    failures = failed}))
end

-- True if that was the last item.
local function complete()
  if is.processed + is.failed < tonumber(is.total) then return false end
  is.expires = 0
  redis.call('HSET', batch, 'status', 'completed', 'completed_at', now, 'expires', 0)
  redis.call('HDEL', batch, 'run', 'entry', 'event', 'delivery')
  redis.call('DEL', finished)
  redis.call('PEXPIRE', batch, kept)
  tell('batch.completed', is.failed + 0 > 0 and failures() or nil)
  return true
end

if action == 'acquire' then
  local kind, mode, digest, total, me, run, entry, event, lease, may, abandoned, listed,
    delivery = unpack(ARGV, 4, 16)
  local word = ARGV[20]
  if is.digest and is.digest ~= digest then return answer('differs') end
  if is.status == 'completed' then return answer('completed') end
  if is.status == 'cancelled' then return answer('cancelled', is.by .. ': ' .. is.reason) end
  local function mine() return answer(is.shared == '1' and 'shared' or 'held', redis.call('GET', finished)) end
  if is.run == run then return mine() end
  if is.shared == '1' then
    local at_it = tonumber(is.expires or 0) > now
    if at_it and (is.event ~= event or may ~= '1') then return answer('busy') end
    if may ~= '1' then return answer('free') end
    raise_version(KEYS[5], clock[1] * 1000000 + clock[2])
    is.processor, is.event, is.expires = me, event, math.max(tonumber(is.expires or 0), now + lease)
    redis.call('HSET', batch, 'processor', me, 'event', event, 'expires', is.expires, 'updated_at', now,
      'told', now)
    redis.call('PEXPIRE', batch, abandoned)
    redis.call('PEXPIRE', finished, abandoned)
    tell('batch.progress')
    return mine()
  end
  local same = is.entry == entry and is.event == event
  local later = same and tonumber(delivery) > tonumber(is.delivery or 0)
  local stale = same and tonumber(delivery) < tonumber(is.delivery or 0)
  local since, from, till = tonumber(ARGV[17]), tonumber(ARGV[18]), tonumber(ARGV[19])
  if now < from or now > till then since = now end
  -- Nobody could renew it in time in which the server did not answer.
  if tonumber(is.expires or 0) > 0 then
    is.expires = math.max(tonumber(is.expires), since + tonumber(is.lease_ms or 0))
  end
  local free = tonumber(is.expires or 0) + (stale and is.lease_ms or 0)
  if free > now and not later then return answer('busy') end
  if may ~= '1' then return answer('free') end

  raise_version(KEYS[5], clock[1] * 1000000 + clock[2])
  local new = not is.digest
  -- Microseconds outlive the hash: after a loss of the data the number still rises.
  is.fence = string.format('%.0f',
    math.max(tonumber(is.fence or 0) + 1, clock[1] * 1000000 + clock[2]))
  is.processor, is.event, is.expires = me, event, now + lease
  redis.call('HSET', batch, 'fence', is.fence, 'processor', me, 'run', run, 'entry', entry,
    'delivery', delivery, 'event', event, 'lease_ms', lease, 'expires', is.expires, 'updated_at', now, 'told', now)
  if new then
    is.processed, is.failed, is.total = 0, 0, total
    redis.call('HSET', batch, 'id', id, 'item_type', kind, 'mode', mode, 'digest', digest,
      'total', total, 'processed', 0, 'failed', 0, 'status', 'running', 'started_at', now)
    if ARGV[21] == '1' then
      is.shared = '1'
      redis.call('HSET', batch, 'shared', 1)
    end
    -- Left over, if somebody deleted the batch by hand.
    redis.call('DEL', finished)
  end
  if not is.word then redis.call('HSET', batch, 'word', word) end
  redis.call('PEXPIRE', batch, abandoned)
  redis.call('PEXPIRE', finished, abandoned)
  tell(new and 'batch.started' or 'batch.progress')
  redis.call('ZREMRANGEBYRANK', batches, 0, -1 - listed)
  if complete() then return answer('completed') end
  return mine()
end

if is.fence ~= ARGV[4] then return answer('lost') end
if is.status == 'completed' then return answer('completed') end
-- It was given back: progress that arrives late must not bring the lease back, which nobody would hold.
if not is.run and is.shared ~= '1' then return answer('lost') end
for k = 6, #KEYS do
  local found = k > 6 and KEYS[k] == KEYS[k - 1] and 'stream' or redis.call('TYPE', KEYS[k]).ok
  if found ~= 'none' and found ~= 'stream' then return answer('unwritable', KEYS[k]) end
end
local pause, recorded, count = tonumber(ARGV[5]), tonumber(ARGV[6]), tonumber(ARGV[8])
local at, new = 9, 0
for _ = 1, count do
  local index, code, message = unpack(ARGV, at, at + 2)
  at = at + 3
  if redis.call('SETBIT', finished, index, 1) == 0 then
    new = new + 1
    if code == '' then
      is.processed = is.processed + 1
    else
      is.failed = is.failed + 1
      if is.failed <= recorded then
        redis.call('HSET', batch, 'failure:' .. index, code .. ' ' .. message)
      end
    end
  end
end
if new == 0 then return answer('held') end
raise_version(KEYS[5], clock[1] * 1000000 + clock[2])
-- Both together: a bitmap that goes first has items counted twice, and one that stays counts for the next
-- batch of the id.
redis.call('PEXPIRE', batch, ARGV[7])
redis.call('PEXPIRE', finished, ARGV[7])
is.expires = now + is.lease_ms
redis.call('HSET', batch, 'processed', is.processed, 'failed', is.failed, 'updated_at', now,
  'expires', is.expires)
local done = complete()
if not done and math.abs(now - is.told) >= pause then
  redis.call('HSET', batch, 'told', now)
  tell('batch.progress')
end
for k = 6, #KEYS do
  local words = tonumber(ARGV[at])
  redis.call('XADD', KEYS[k], '*', unpack(ARGV, at + 1, at + words))
  at = at + 1 + words
end
return answer(done and 'completed' or 'held')
