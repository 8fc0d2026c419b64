#!lua
-- Ends a ballot whose votes the caller counted, in one step with its fact; or notes how far they were counted.
--
-- KEYS  1 to 11 as in `ballot.lua`  12 the ballots that are not counted to their end, by expiry  13 the leader
-- ARGV  1 decision  2 what the votes come to: 'decided', 'deadlocked', or '': nothing yet  3 how many votes were
--       counted  4 how many of them the leading value has  5 that value, where it is decided  6 with how many votes it
--       is to be counted again  7 how long a ballot is kept after its end, in ms  8 the arbiter, or '': everyone
--       9 the term in which it leads
-- Returns {answer, status, votes stored, quorum, electorate, decided value}. answer: 'state'; or, nothing being changed,
--       'absent', 'deposed' (that arbiter does not lead in that term now), 'arbiter' (only the leader may),
--       'again' (there are fewer votes than were counted; or its time is over, and there are more).
-- Cost  O(log n) for n open ballots; with a decision O(votes), if they fit into the fact. Refused when memory is full.
--
-- A ballot is ended once: only one that is `voting` gets that far, and the fact is a part of that step. Votes that are
-- stored after the caller has read them change no decision, so they need not be known. That its time is over ends
-- it only if all votes were counted.
local ballot, votes, open, state, uncounted = KEYS[1], KEYS[3], KEYS[8], KEYS[11], KEYS[12]
local decision, outcome, counted, leading, value, look_at = unpack(ARGV, 1, 6)
local clock = redis.call('TIME')
local now = clock[1] * 1000 + math.floor(clock[2] / 1000)

local is = redis.call('HMGET', ballot, 'status', 'electorate', 'quorum', 'expires_at', 'value', 'pattern', 'look_at',
  'leading', 'said')
if not is[1] then
  redis.call('ZREM', uncounted, decision)
  return {'absent', '', 0, 0, 0, false}
end
local status, members, quorum = is[1], tonumber(is[2]), tonumber(is[3])
local count = redis.call('HLEN', votes)
local function answer(what)
  return {what, status, count, quorum, members, is[5]}
end

if status ~= 'voting' then return answer('state') end
if is[6] == 'centralized' then
  if ARGV[8] == '' then return answer('arbiter') end
  local leader = redis.call('HMGET', KEYS[13], 'id', 'term', 'until')
  local expires = tonumber(redis.call('ZSCORE', KEYS[6], ARGV[8]) or 0)
  if leader[1] ~= ARGV[8] or leader[2] ~= ARGV[9] or tonumber(leader[3] or 0) <= now or expires <= now then
    return answer('deposed')
  end
end
local over = tonumber(is[4]) <= now
-- Fewer than were counted: a failover lost some.
if count < tonumber(counted) or (outcome == '' and over and count > tonumber(counted)) then
  return answer('again')
end
if outcome == '' and not over then
  -- Votes only become more: so does what was counted.
  redis.call('HSET', ballot, 'look_at', math.max(tonumber(look_at), tonumber(is[7])),
    'leading', math.max(tonumber(leading), tonumber(is[8])))
  return answer('state')
end

raise_version(state, clock[1] * 1000000 + clock[2])
redis.call('ZREM', uncounted, decision)
redis.call('HSET', ballot, 'leading', leading)
if outcome == '' then
  status = 'expired'
  redis.call('HSET', ballot, 'status', status, 'ended_at', is[4])
  redis.call('ZREM', open, decision)
  return answer('state')
end
status = outcome
if outcome == 'decided' then
  is[5] = value
  redis.call('HSET', ballot, 'value', value)
end
end_ballot(KEYS, decision, status, is[5], {votes = count, quorum = quorum, electorate = members,
  said = tonumber(is[9])}, tonumber(ARGV[7]), now)
return answer('state')
