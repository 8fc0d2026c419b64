#!lua flags=allow-oom
-- Counts what an instance says of its peers, and ends the lease of those that a majority of their
-- observers suspects: they are expired from now on, so whoever sweeps declares them lost.
--
-- KEYS  1 hash of the observer  2 active  3 suspects  4 external ones  5 the version of the state
--       6… what observers said of each peer
-- ARGV  1 observer  2 its incarnation, or ''  3 observers that are counted for one peer at most
--       4 the process that observes, or '': an event says so  5 from when and  6 until when the call
--       may be run, in ms: another time is not the one in which it was made
--       7… for each peer its id and 'healthy' or 'suspect'
-- Returns the ids of those whose lease was ended. Nothing is changed for an observer that is not
--       alive or not sealed, nor for a peer that is not alive or is the observer itself.
-- Cost  O(peers * log n); for a peer that is suspect, or that has many observers, O(observers * log n)
--       more. Passes when memory is full: what grows is bounded, and lapses.
--
-- An observer has one voice for a peer: its last one. It counts until the observer's ttl has passed,
-- and while the observer is alive. A peer is suspect while one voice says so. It loses its lease when
-- more than half of the voices, and at least two, say so. A pulse of the peer takes all voices back.
-- Only what a sealed instance's own process says is a voice: anyone may make up external ones.
local observer, most = ARGV[1], tonumber(ARGV[3])
local clock = redis.call('TIME')
local now = clock[1] * 1000 + math.floor(clock[2] / 1000)

local function alive(id)
  return tonumber(redis.call('ZSCORE', KEYS[2], id) or 0) > now
end

local is = redis.call('HMGET', KEYS[1], 'status', 'incarnation', 'ttl_ms', 'sealed', 'process')
if is[1] ~= 'active' or not alive(observer) or (ARGV[2] ~= '' and ARGV[2] ~= is[2])
  or is[4] ~= '1' or ARGV[4] ~= is[5] or now < tonumber(ARGV[5]) or now > tonumber(ARGV[6]) then
  return {}
end
local ttl = tonumber(is[3])

-- The voices that count, how many of them suspect, and until when the last of those does.
local function count(voices)
  local all, suspecting, lapses = 0, 0, 0
  local said, observers, over = redis.call('HGETALL', voices), {}, {}
  for i = 1, #said, 2 do observers[#observers + 1] = said[i] end
  local expiries = #observers > 0 and redis.call('ZMSCORE', KEYS[2], unpack(observers)) or {}
  for i = 1, #said, 2 do
    local voice, till = string.match(said[i + 1], '^(%a)(%d+)$')
    till = tonumber(till or 0)
    if till <= now or tonumber(expiries[(i + 1) / 2] or 0) <= now then
      over[#over + 1] = said[i]
    else
      all = all + 1
      if voice == 's' then
        suspecting = suspecting + 1
        lapses = math.max(lapses, till)
      end
    end
  end
  if #over > 0 then redis.call('HDEL', voices, unpack(over)) end
  return all, suspecting, lapses
end

local lost, changes = {}, false
for i = 6, #KEYS do
  local voices = KEYS[i]
  local peer, says = ARGV[2 * i - 5], ARGV[2 * i - 4]
  if peer ~= observer and alive(peer) then
    local known = redis.call('HEXISTS', voices, observer) == 1
    local all, suspecting, lapses
    if not known and redis.call('HLEN', voices) >= most then
      all, suspecting, lapses = count(voices)
    end
    if not all or all < most then
      all = nil
      redis.call('HSET', voices, observer,
        (says == 'suspect' and 's' or 'h') .. string.format('%.0f', now + ttl))
      if redis.call('PTTL', voices) < ttl then redis.call('PEXPIRE', voices, ttl) end
    end
    local suspect = redis.call('ZSCORE', KEYS[3], peer)
    if says == 'suspect' or suspect then
      local was = tonumber(suspect or 0) > now
      if not all then all, suspecting, lapses = count(voices) end
      if suspecting >= 2 and 2 * suspecting > all then
        redis.call('ZADD', KEYS[2], 'XX', now, peer)
        redis.call('ZADD', KEYS[4], 'XX', now, peer)
        redis.call('ZREM', KEYS[3], peer)
        redis.call('DEL', voices)
        lost[#lost + 1] = peer
        changes = true
      elseif suspecting > 0 then
        local over = redis.call('ZRANGEBYSCORE', KEYS[3], '-inf', now, 'LIMIT', 0, 100)
        if #over > 0 then redis.call('ZREM', KEYS[3], unpack(over)) end
        redis.call('ZADD', KEYS[3], lapses, peer)
        changes = changes or not was
      else
        redis.call('ZREM', KEYS[3], peer)
        changes = changes or was
      end
    end
  end
end
if changes then raise_version(KEYS[5], clock[1] * 1000000 + clock[2]) end
return lost
