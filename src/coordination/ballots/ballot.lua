-- What the scripts of ballots share: opening one, and ending it. It has functions only; each is put between the
-- first line of such a script and the rest.
--
-- `keys` are the first 11 of each: 1 ballot  2 electorate  3 votes  4 tally  5 ballots by opening time  6 active
--        7 broadcast  8 open ballots by expiry  9 kept ballots  10 their electors  11 the version of the state
local function whole(number)
  return string.format('%.0f', number)
end

-- The head of a MessagePack map of this many pairs, at most 65,535.
local function map_of(n)
  if n < 16 then return string.char(0x80 + n) end
  return string.char(0xde, math.floor(n / 256), n % 256)
end

local function keep_ballot_until(keys, time)
  for at = 1, 4 do redis.call('PEXPIREAT', keys[at], whole(time)) end
end

-- Opens a ballot that is not there, with that status and pattern. What refuses it, and how many would be in the
-- electorate; nil: it is open. `args` are those of `add_quorum_vote.lua`.
local function open_ballot(keys, role_set, args, status, pattern, now)
  local ballot, electorate, votes, tally, index, active = unpack(keys, 1, 6)
  local open, all_kept, electors = unpack(keys, 8, 10)
  local decision, id, role = args[1], args[2], args[4]
  local lasts, kept, longest = tonumber(args[5]), tonumber(args[6]), tonumber(args[7])
  local may = tonumber(redis.call('ZSCORE', active, id) or 0) > now
    and (not role_set or redis.call('SISMEMBER', role_set, id) == 1)
  if not may then return 'absent', 0 end
  local asked = role_set and redis.call('SCARD', role_set) or redis.call('ZCARD', active)
  if asked > tonumber(args[8]) then return 'crowd', asked end
  redis.call('ZREMRANGEBYSCORE', open, '-inf', whole(now))
  if redis.call('ZCARD', open) >= tonumber(args[10]) then return 'many', 0 end
  local lapsed = redis.call('ZRANGEBYSCORE', all_kept, '-inf', whole(now), 'LIMIT', 0, 100)
  if #lapsed > 0 then
    local sum = 0
    for _, one in ipairs(lapsed) do sum = sum + string.match(one, '^%d+') end
    redis.call('ZREM', all_kept, unpack(lapsed))
    redis.call('INCRBY', electors, -sum)
  end
  if tonumber(redis.call('GET', electors) or 0) + asked > tonumber(args[11]) then
    return 'much', 0
  end
  -- All first, then without the expired: ZRANGESTORE, which grows its result, takes four times as long.
  if role_set then
    redis.call('ZINTERSTORE', electorate, 2, active, role_set, 'WEIGHTS', 1, 0)
  else
    redis.call('ZINTERSTORE', electorate, 1, active)
  end
  redis.call('ZREMRANGEBYSCORE', electorate, '-inf', whole(now))
  local members = redis.call('ZCARD', electorate)
  -- Left over, if somebody deleted the ballot by hand.
  redis.call('UNLINK', votes, tally)
  -- With fewer votes than half of all nothing is decided, nor made impossible.
  redis.call('HSET', ballot, 'decision', decision, 'status', status, 'pattern', pattern, 'role', role,
    'electorate', members, 'quorum', math.floor(members / 2) + 1, 'vote_count', 0, 'leading', 0, 'said', 0,
    'look_at', math.ceil(members / 2),
    'opened_at', whole(now), 'expires_at', whole(now + lasts), 'kept_until', whole(now + lasts + kept))
  redis.call('ZADD', index, whole(now), decision)
  redis.call('ZREMRANGEBYSCORE', index, '-inf', whole(now - longest))
  redis.call('ZREMRANGEBYRANK', index, 0, -1 - args[9])
  redis.call('ZADD', open, whole(now + lasts), decision)
  redis.call('ZADD', all_kept, whole(now + lasts + kept), members .. ' ' .. decision)
  redis.call('INCRBY', electors, members)
  for _, key in ipairs({index, open, all_kept, electors}) do
    redis.call('PEXPIRE', key, whole(longest))
  end
  return nil
end

-- Ends a ballot as decided or deadlocked, with its fact. `of` is how it stands: votes, quorum, electorate, and said,
-- the bytes of the votes with who gave them.
local function end_ballot(keys, decision, status, value, of, kept, now)
  local ballot, votes, broadcast, open, all_kept = keys[1], keys[3], keys[7], keys[8], keys[9]
  local told_at_most = 32 * 1024
  redis.call('HSET', ballot, 'status', status, 'ended_at', whole(now), 'kept_until', whole(now + kept))
  keep_ballot_until(keys, now + kept)
  redis.call('ZREM', open, decision)
  redis.call('ZADD', all_kept, 'XX', whole(now + kept), of.electorate .. ' ' .. decision)
  local pairs_told = 4
  local data = cmsgpack.pack('decision', decision, 'vote_count', of.votes, 'quorum', of.quorum,
    'electorate', of.electorate)
  if status == 'decided' then
    -- The value is MessagePack already.
    pairs_told = pairs_told + 1
    data = data .. cmsgpack.pack('value') .. value
  end
  local parts, bytes = {}, 0
  local said_by = of.said <= told_at_most and redis.call('HGETALL', votes) or {}
  for at = 1, #said_by, 2 do
    parts[#parts + 1] = cmsgpack.pack(said_by[at]) .. said_by[at + 1]
    bytes = bytes + #parts[#parts]
  end
  if #said_by > 0 and bytes <= told_at_most then
    pairs_told = pairs_told + 1
    data = data .. cmsgpack.pack('votes') .. map_of(#parts) .. table.concat(parts)
  end
  data = map_of(pairs_told) .. data
  redis.call('XADD', broadcast, '*', 'type', 'quorum.' .. status, 'time', whole(now), 'data', data)
end
